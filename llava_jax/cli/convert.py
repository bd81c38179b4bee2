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
    """Writes a whole LLaVA in another format. Nothing is left behind where it cannot.

    Args:
        src: A folder of Hugging Face's or of the original's, the workdir of a run (its newest checkpoint is taken), or
            what `--to orbax` wrote. Its content decides.
        dst: A folder that does not exist yet.
        to: hf: for transformers. llava: the original's. orbax: ours, laid out as a run's workdir.
        dtype: Of the weights; each as its file has it where this is not given.
        verify: Load DST again and compare seven points of a forward pass, with transformers too where it is installed.
    """
    from llava_jax.api.load import load
    from llava_jax.api.parity import compare_traces, trace
    from llava_jax.checkpoint.new_folder import check_new

    check_new(dst)
    unrounded = trace(load(src, dtype=None, **source.options())) if verify and dtype else None
    model = load(src, dtype=dtype, **source.options())
    expected = unrounded or (trace(model) if verify else None)
    model.save(dst, to)
    log(f"{dst}: written for {to}, {len(model.params)} parameters")
    if not verify:
        return 0
    needs_tower = to == "llava" and not model.source_info.tower_is_inside
    own_settings = dict(base=None, tokenizer=None, template=None, aspect=None)  # DST says these itself
    dst_source = replace(source, tower=source.tower if needs_tower else None, **own_settings)
    del model  # two at a time may be one too many
    return compare_traces(
        expected, load(dst, dtype=None, **dst_source.options()), dst if to == "hf" else None, dtype or "float32"
    )
