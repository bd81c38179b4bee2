"""python -m llava_jax convert SRC DST --to hf|llava|orbax"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

SRC = Annotated[Path, tyro.conf.arg(metavar="SRC")]
DST = Annotated[Path, tyro.conf.arg(metavar="DST")]


def convert(
    src: SRC,
    dst: DST,
    /,
    to: Literal["hf", "llava", "orbax"],
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    base: Path | None = None,
    tower: Path | None = None,
    tokenizer: str | None = None,
    template: str | None = None,
    aspect: Literal["crop", "pad"] | None = None,
    allow_pickle: bool = False,
    verify: bool = False,
) -> int:
    """Writes a whole LLaVA in another format. Nothing is left behind where it cannot.

    Args:
        src: A folder of Hugging Face's or of the original's, the workdir of a run (its newest checkpoint is taken), or
            what `--to orbax` wrote. Its content decides.
        dst: A folder that does not exist yet.
        to: hf: for transformers. llava: the original's. orbax: ours, laid out as a run's workdir.
        dtype: Of the weights; each as its file has it where this is not given.
        base: The model that a LoRA folder, a projector or delta weights were made from.
        tower: A CLIP folder, for an original that has no tower of its own.
        tokenizer: Where SRC has none, or another one: a tokenizer.model, tokenizer.json, a .gguf, a folder.
        template: The conversation template it was trained with; vicuna_v1 where SRC does not say.
        aspect: How its images were made square; what SRC says where this is not given.
        allow_pickle: Also open .bin files, which are programs (in a process of their own, tensors only).
        verify: Load DST again and compare seven points of a forward pass, with transformers too where it is installed.
    """
    from llava_jax.api.load import load
    from llava_jax.api.parity import compare, trace
    from llava_jax.checkpoint.new_folder import check_new

    check_new(dst)

    def load_src(dtype: str | None):
        return load(
            src, dtype=dtype, tower=tower, base=base, tokenizer=tokenizer, template=template, aspect=aspect,
            allow_pickle=allow_pickle,
        )  # fmt: skip

    unrounded = trace(load_src(None)) if verify and dtype else None
    model = load_src(dtype)
    wanted = unrounded or (trace(model) if verify else None)
    model.save(dst, to)
    print(f"{dst}: written for {to}, {len(model.params)} parameters", flush=True)
    if not verify:
        return 0
    tower = tower if to == "llava" and not model.source_info.tower_is_inside else None
    del model  # two at a time may be one too many
    again = load(dst, dtype=None, tower=tower, allow_pickle=allow_pickle)
    return compare(wanted, again, dst if to == "hf" else None, dtype or "float32")
