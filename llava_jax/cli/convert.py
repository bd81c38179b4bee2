"""python -m llava_jax convert SRC DST --to hf|llava|orbax"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.cli.flags import Flat, SourceFlags
from llava_jax.output.console import log

SRC = Annotated[Path, tyro.conf.arg(metavar="SRC")]
DST = Annotated[Path, tyro.conf.arg(metavar="DST")]


def convert(
    src: SRC,
    dst: DST,
    /,
    *,
    to: Literal["hf", "llava", "orbax"],
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    source: Flat[SourceFlags],
    verify: bool = False,
) -> int:
    """Converts a LLaVA to another format. If it fails, it leaves no files behind.

    Args:
        src: A Hugging Face or original folder, the workdir of a run (its newest checkpoint), or an `--to orbax` output.
        dst: The folder to write. It must not exist.
        to: hf: for transformers. llava: the original's format. orbax: ours, laid out like a workdir.
        dtype: The dtype of the written weights. Default: unchanged.
        verify: Reload DST and compare seven activations of a forward pass, also with transformers if it is installed.
    """
    from llava_jax.api.load import load
    from llava_jax.api.parity import compare_traces, trace
    from llava_jax.checkpoint.new_folder import check_new

    check_new(dst)
    unrounded = trace(load(src, dtype=None, **source.options())) if verify and dtype else None
    model = load(src, dtype=dtype, **source.options())
    expected = unrounded or (trace(model) if verify else None)
    model.save(dst, to)
    log(f"{dst}: written for {to}, {len(model.params)} tensors")
    if not verify:
        return 0
    needs_tower = to == "llava" and not model.source_info.tower_is_inside
    own_settings = dict(base=None, tokenizer=None, template=None, aspect=None)  # DST contains these
    dst_source = replace(source, tower=source.tower if needs_tower else None, **own_settings)
    del model  # there may be no memory for two
    return compare_traces(
        expected, load(dst, dtype=None, **dst_source.options()), dst if to == "hf" else None, dtype or "float32"
    )
