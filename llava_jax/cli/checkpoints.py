"""python -m llava_jax checkpoints list|verify DIR (also spelled ckpt)"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.errors import DataError
from llava_jax.output.console import log


def checkpoints(
    action: Annotated[Literal["list", "verify"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
) -> int:
    """Lists the checkpoints of a run, or verifies their files against the hashes written when they were saved.

    Exits with 1 if a checkpoint is damaged. `sha256sum -c SHA256SUMS` in the folder of a checkpoint verifies it too.

    Args:
        action: list: step, size and time of each checkpoint. verify: also reads all files and names the damaged ones.
        path: The workdir of a run, an output of `convert --to orbax`, or a folder checkpoints/.
    """
    from llava_jax.checkpoint.native import integrity

    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    try:
        steps = integrity.steps_in(folder)
    except OSError as e:
        raise DataError(f"{folder} cannot be read: {e.strerror}; give the workdir of a run") from None
    if not steps:
        raise DataError(f"{folder} contains no checkpoint; give the workdir of a run")
    damaged = 0
    for step in steps:
        checkpoint = folder / str(step)
        faults = integrity.faults(checkpoint) if action == "verify" else []
        damaged += bool(faults)
        note = "" if integrity.is_hashed(checkpoint) else ", saved without hashes: contents unchecked"
        state = ": DAMAGED" if faults else ": ok" if action == "verify" else ""
        log(f"{step}: {integrity.describe_checkpoint(checkpoint)}{state}{note}")
        for fault in faults:
            log(f"    {fault}")
    for moved in sorted(folder.glob("*.damaged*")):
        log(f"{moved.name}: {integrity.describe_checkpoint(moved)}: damaged; the run resumed without it")
    for unfinished in sorted(folder.glob("*tmp*")):
        log(f"{unfinished.name}: an unfinished save, not a checkpoint")
    if action == "verify":
        log(f"{damaged} of {len(steps)} damaged")
    return int(damaged > 0)
