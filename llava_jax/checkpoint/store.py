"""Checkpoints of a run: all parameters, optimizer, step, RNG, the place in the data, the config; Orbax, asynchronous.

One checkpoint is a folder `checkpoints/<global step>/` with the items `state`, `data` and `run`. A folder without its
commit marker is never taken for a checkpoint, so a kill while saving costs nothing but that save.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import struct

from llava_jax.errors import DataError


class Store:
    """The checkpoints below one folder. `state` is any pytree; flat parameter dicts keep their paths as names."""

    def __init__(self, folder: Path, keep: int, at_once: int | None = None):
        """keep: newest checkpoints kept. at_once: bytes of `state` that a save holds beside the arrays; then the arrays
        must stay until `wait` returns. None: all of them. Raises DataError where the folder cannot be made."""
        handlers = None
        if at_once is not None:  # Orbax counts in GB and wants more than the largest array has
            state = ocp.PyTreeCheckpointHandler(save_device_host_concurrent_gb=(at_once + 1) / 1e9)
            handlers = {"state": state, "data": ocp.JsonCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self._save_state = ocp.args.StandardSave if at_once is None else ocp.args.PyTreeSave
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=at_once is None
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
        except OSError as e:
            raise DataError(
                f"checkpoints cannot be kept in {folder}: {e.strerror or e}; choose another --workdir"
            ) from None

    def latest(self) -> int | None:
        """Global step of the newest complete checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: struct.PyTreeNode, data: dict, run: dict) -> None:
        """Starts saving (the arrays are copied off the device first, so the state may be donated right after)."""
        if step in self._manager.all_steps():
            return  # the end of a stage may coincide with a periodic save
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=self._save_state(state), data=ocp.args.JsonSave(data), run=ocp.args.JsonSave(run)
            ),
        )

    def read_run(self, step: int) -> dict:
        """The `run` record of a checkpoint, read before anything large."""
        return self._read(step, run=ocp.args.JsonRestore())["run"]

    def restore(self, step: int, abstract: struct.PyTreeNode) -> tuple[struct.PyTreeNode, dict]:
        """(state laid out as `abstract`, place in the data). Any mesh may restore what another one saved."""
        items = self._read(step, state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        return items["state"], items["data"]

    def params(self, step: int) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Path of every parameter -> (the part of the state that holds it, dtype, shape). Reads no arrays."""
        tree = ocp.PyTreeCheckpointHandler().metadata(self._manager.directory / str(step) / "state").tree
        return {
            path: (part, x.dtype.name, tuple(x.shape))
            for part in ("frozen", "trainable")
            for path, x in (tree.get(part) or {}).items()
        }

    def restore_params(self, step: int, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The parameters of `like` (path -> shape, dtype, sharding), nothing else; each device reads its own part."""
        at = self.params(step)
        wanted = {part: {p: x for p, x in like.items() if at[p][0] == part} for part in ("frozen", "trainable")}
        wanted = {part: specs for part, specs in wanted.items() if specs}
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
        found = self._read(step, state=args)["state"]
        return {p: found[at[p][0]][p] for p in like}

    def _read(self, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as e:
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise DataError(f"checkpoint {step} in {self._manager.directory} cannot be restored: {first}") from e

    def wait(self) -> None:
        """Returns when every started save is complete; raises what a save in the background raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
