"""Saves and restores checkpoints of a run: parameters, optimizer, step, RNG, data state, config; async with Orbax.

A checkpoint is a folder `checkpoints/<global step>/` with the items `state`, `data` and `run`, and hashes of its files.
It gets that name when it is complete, so a kill during a save loses only that save.
"""

import contextlib
import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import struct
from jax.experimental import multihost_utils

from llava_jax.checkpoint.native import integrity
from llava_jax.errors import DataError

# Orbax logs the traceback of a failed write in each thread and also raises it. Here it becomes one error message.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or not record.exc_info)


@dataclasses.dataclass(frozen=True)
class LatestCheckpoint:
    """The newest intact checkpoint (None if there is none), newer damaged ones, and messages to log on process 0."""

    step: int | None
    damaged: tuple[int, ...]
    notes: tuple[str, ...]


class CheckpointStore:
    """The checkpoints in a folder. `state` may be any pytree; flat parameter dicts keep their paths as names."""

    def __init__(self, folder: Path, keep: int, concurrent_bytes: int | None = None):
        """keep: number of newest checkpoints kept. concurrent_bytes: bytes of `state` that a save copies at a time; the
        arrays must then stay unchanged until `wait` returns. None: all. Raises DataError for an unwritable folder."""
        self._saving = None  # the step being saved
        self._save_state, handlers = ocp.args.StandardSave, None
        if concurrent_bytes is not None:
            # Orbax's limit is in GB and must exceed the largest array. Compression would hold all arrays at once, and
            # hardly shrinks weights.
            state = ocp.PyTreeCheckpointHandler(
                save_device_host_concurrent_gb=(concurrent_bytes + 1) / 1e9, use_compression=False
            )
            handlers = {"state": state, "data": ocp.JsonCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
            self._save_state = ocp.args.PyTreeSave
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                # Called on process 0 after all processes have written, before the folder gets its final name.
                post_finalization_callback=self._write_hashes,
                create_directories_asynchronously=concurrent_bytes is None,  # else the first array waits forever
            ),
        )  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = folder.absolute()
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        except OSError as e:
            raise DataError(
                f"checkpoints cannot be saved in {folder}: {e.strerror or e}; choose another --workdir"
            ) from None

    def latest_step(self) -> int | None:
        """Returns the global step of the newest complete checkpoint, None without one. Checks no hashes."""
        return self._manager.latest_step()

    def latest_intact(self) -> LatestCheckpoint:
        """Finds the newest checkpoint whose files match their hashes, which reads all of it. Every process must call
        it; process 0 decides for all. Raises DataError if all checkpoints are damaged."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        intact, notes = -1, []
        for step in steps if jax.process_index() == 0 else ():
            folder = self._folder / str(step)
            faults = integrity.faults(folder)
            if not faults:
                intact = step
                if not integrity.is_hashed(folder):
                    notes.append(f"checkpoint {folder} was saved before hashes existed: it is used unchecked")
                break
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            notes.append(f"WARNING: checkpoint {folder} is DAMAGED: {'; '.join(faults[:3])}{more}")
        intact = int(multihost_utils.broadcast_one_to_all(np.int32(intact)))
        if intact < 0 and steps:
            raise DataError(
                "; ".join([*notes, f"no checkpoint in {self._folder} is intact"])
                + ". Restore one from a backup, or choose another --workdir"
            )
        damaged = tuple(step for step in steps if step > intact)
        if damaged and notes:
            notes.append(f"WARNING: falling back to checkpoint {intact}")
        return LatestCheckpoint(None if intact < 0 else intact, damaged, tuple(notes))

    def quarantine(self, steps: tuple[int, ...]) -> None:
        """Renames damaged checkpoints to `<step>.damaged`, so that these steps can be saved again. Every process must
        call it."""
        for step in steps if jax.process_index() == 0 else ():
            names = (f"{step}.damaged" + (f"-{i}" if i else "") for i in itertools.count())
            unused = next(name for name in names if not (self._folder / name).exists())
            (self._folder / str(step)).rename(self._folder / unused)
        multihost_utils.sync_global_devices("damaged checkpoints are quarantined")
        self._manager.reload()

    def save(self, step: int, state: struct.PyTreeNode, data: dict, run: dict) -> None:
        """Starts an asynchronous save. Arrays are copied off the device first, so `state` may be donated afterwards.
        Raises DataError if this or the previous save fails; complete checkpoints are then unchanged."""
        if step in self._manager.all_steps():
            return  # saved already: a periodic save may coincide with the end of a stage
        self.wait()
        self._saving = step
        with self._reporting_write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=self._save_state(state), data=ocp.args.JsonSave(data), run=ocp.args.JsonSave(run)
                ),
                custom_metadata=integrity.HASH_MARKER,
            )

    def _write_hashes(self) -> None:
        integrity.write_hashes(self._folder / f"{self._saving}{ocp.path.atomicity.TMP_DIR_SUFFIX}")

    @contextlib.contextmanager
    def _reporting_write_errors(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as e:  # tensorstore raises ValueError for a full disk
            lines = str(e).strip().splitlines() or [type(e).__name__]
            complete = integrity.steps_in(self._folder)
            raise DataError(
                f"checkpoint {self._saving} cannot be written to {self._folder} "
                f"({shutil.disk_usage(self._folder).free:,} bytes are free there): {lines[0]}. "
                f"The newest complete one is {complete[-1] if complete else 'none'}; free space and run the same "
                "command to resume from it"
            ) from e

    def read_run(self, step: int) -> dict:
        """Reads the `run` record of a checkpoint. Raises DataError if it cannot be restored."""
        return self._read(step, run=ocp.args.JsonRestore())["run"]

    def restore(self, step: int, abstract: struct.PyTreeNode) -> tuple[struct.PyTreeNode, dict]:
        """Restores (state with the shapes and shardings of `abstract`, data state), saved on any mesh. Raises DataError
        if the checkpoint is damaged or has another structure."""
        items = self._read(step, state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        return items["state"], items["data"]

    def param_metadata(self, step: int) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Returns parameter path -> (state field `frozen` | `trainable`, dtype, shape). Reads no arrays."""
        tree = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree
        return {
            path: (part, x.dtype.name, tuple(x.shape))
            for part in ("frozen", "trainable")
            for path, x in (tree.get(part) or {}).items()
        }

    def restore_params(self, step: int, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Restores only the parameters of `like` (path -> shape, dtype, sharding); each device reads its own part."""
        metadata = self.param_metadata(step)
        specs = {part: {p: x for p, x in like.items() if metadata[p][0] == part} for part in ("frozen", "trainable")}
        specs = {part: part_specs for part, part_specs in specs.items() if part_specs}
        restore_args = ocp.checkpoint_utils.construct_restore_args(specs)
        args = ocp.args.PyTreeRestore(specs, restore_args=restore_args, partial_restore=True)
        state = self._read(step, state=args)["state"]
        return {p: state[metadata[p][0]][p] for p in like}

    def _read(self, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as e:
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise DataError(f"checkpoint {step} in {self._folder} cannot be restored: {first}") from e

    def wait(self) -> None:
        """Waits until every started save is complete. Raises DataError if one failed in the background."""
        with self._reporting_write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and raises as `wait` does, then closes the manager."""
        with self._reporting_write_errors():
            self._manager.close()
