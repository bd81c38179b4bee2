"""Checkpoints of a run: all parameters, optimizer, step, RNG, the place in the data, the config; Orbax, asynchronous.

One checkpoint is a folder `checkpoints/<global step>/` with the items `state`, `data` and `run`, and the hashes of its
files. It gets that name when it is complete, so a kill while saving costs nothing but that save.
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

# Orbax logs the traceback of a failed write from each of its threads, and raises it as well; here it becomes one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or not record.exc_info)


@dataclasses.dataclass(frozen=True)
class LatestCheckpoint:
    """The newest checkpoint that is whole, None where there is none at all; the newer ones, which are damaged; and what
    there is to say about them (on process 0)."""

    step: int | None
    damaged: tuple[int, ...]
    notes: tuple[str, ...]


class CheckpointStore:
    """The checkpoints below one folder. `state` is any pytree; flat parameter dicts keep their paths as names."""

    def __init__(self, folder: Path, keep: int, at_once: int | None = None):
        """keep: newest checkpoints kept. at_once: bytes of `state` that a save holds beside the arrays; then the arrays
        must stay until `wait` returns. None: all of them. Raises DataError where the folder cannot be made."""
        self._saving = None  # the step that is being saved
        self._save_state, handlers = ocp.args.StandardSave, None
        if at_once is not None:
            # Orbax counts in GB and wants more than the largest array has. A compressor would hold them all; weights
            # hardly become smaller by it.
            state = ocp.PyTreeCheckpointHandler(
                save_device_host_concurrent_gb=(at_once + 1) / 1e9, use_compression=False
            )
            handlers = {"state": state, "data": ocp.JsonCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
            self._save_state = ocp.args.PyTreeSave
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                # Called on process 0 when all processes have written, before the folder gets its final name.
                post_finalization_callback=self._write_hashes,
                create_directories_asynchronously=at_once is None,  # else the first array waits for them forever
            ),
        )  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = folder.absolute()
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        except OSError as e:
            raise DataError(
                f"checkpoints cannot be kept in {folder}: {e.strerror or e}; choose another --workdir"
            ) from None

    def latest(self) -> int | None:
        """Global step of the newest complete checkpoint, None without one."""
        return self._manager.latest_step()

    def newest(self) -> LatestCheckpoint:
        """Looks for the newest checkpoint whose files are what was saved; reads all of it. Every process must call it,
        process 0 decides for all. Raises DataError where there are checkpoints and none is whole."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        chosen, notes = -1, []
        for step in steps if jax.process_index() == 0 else ():
            folder = self._folder / str(step)
            wrong = integrity.faults(folder)
            if not wrong:
                chosen = step
                if not integrity.is_hashed(folder):
                    notes.append(f"checkpoint {folder} is of before there were hashes: it is taken unchecked")
                break
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            notes.append(f"WARNING: checkpoint {folder} is DAMAGED: {'; '.join(wrong[:3])}{more}")
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen < 0 and steps:
            raise DataError(
                "; ".join([*notes, f"no checkpoint in {self._folder} is whole"])
                + ". Bring one back from a copy, or choose another --workdir"
            )
        damaged = tuple(step for step in steps if step > chosen)
        if damaged and notes:
            notes.append(f"WARNING: falling back to checkpoint {chosen}")
        return LatestCheckpoint(None if chosen < 0 else chosen, damaged, tuple(notes))

    def set_aside(self, steps: tuple[int, ...]) -> None:
        """Renames damaged checkpoints to `<step>.damaged`: a new one will be saved in their place. Every process must
        call it."""
        for step in steps if jax.process_index() == 0 else ():
            names = (f"{step}.damaged" + (f"-{i}" if i else "") for i in itertools.count())
            free = next(name for name in names if not (self._folder / name).exists())
            (self._folder / str(step)).rename(self._folder / free)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def save(self, step: int, state: struct.PyTreeNode, data: dict, run: dict) -> None:
        """Starts saving (the arrays are copied off the device first, so the state may be donated right after). Raises
        DataError where this or the save before it fails: then the checkpoints that were complete are as they were."""
        if step in self._manager.all_steps():
            return  # the end of a stage may coincide with a periodic save
        self.wait()
        self._saving = step
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=self._save_state(state), data=ocp.args.JsonSave(data), run=ocp.args.JsonSave(run)
                ),
                custom_metadata=integrity.MARK,
            )

    def _write_hashes(self) -> None:
        integrity.write_hashes(self._folder / f"{self._saving}{ocp.path.atomicity.TMP_DIR_SUFFIX}")

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as e:  # tensorstore raises ValueError for a full disk
            lines = str(e).strip().splitlines() or [type(e).__name__]
            complete = integrity.steps_in(self._folder)
            raise DataError(
                f"checkpoint {self._saving} cannot be written to {self._folder} "
                f"({shutil.disk_usage(self._folder).free:,} bytes are free there): {lines[0]}. "
                f"The newest complete one is {complete[-1] if complete else 'none'}; with more space the same command "
                "goes on from there"
            ) from e

    def read_run(self, step: int) -> dict:
        """The `run` record of a checkpoint, read before anything large."""
        return self._read(step, run=ocp.args.JsonRestore())["run"]

    def restore(self, step: int, abstract: struct.PyTreeNode) -> tuple[struct.PyTreeNode, dict]:
        """(state laid out as `abstract`, place in the data). Any mesh may restore what another one saved."""
        items = self._read(step, state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        return items["state"], items["data"]

    def params(self, step: int) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Path of every parameter -> (the part of the state that holds it, dtype, shape). Reads no arrays."""
        tree = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree
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
            raise DataError(f"checkpoint {step} in {self._folder} cannot be restored: {first}") from e

    def wait(self) -> None:
        """Returns when every started save is complete. Raises DataError where one failed in the background."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and raises as it does."""
        with self._writing():
            self._manager.close()
