"""The workdir of a run: config.json, metadata.json, and the checkpoint from which it resumes."""

import dataclasses
import json
import platform
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

import llava_jax
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The checkpoint from which a run resumes. step: global step. index, stage: of its stage. evaluated: whether it was
    saved after the evaluation at that step. guard: the StepGuard's record, None in older checkpoints."""

    step: int
    index: int
    stage: str
    evaluated: bool
    guard: dict | None = None

    def is_past(self, record: dict) -> bool:
        """Whether a metrics record is not written again after the resume."""
        if record["step"] != self.step:
            return record["step"] < self.step
        return record["stage"] == self.stage and (self.evaluated or "val/loss" not in record)


def write_run_files(workdir: Path, config: Config, argv: list[str], mesh: Mesh) -> None:
    """Writes config.json and metadata.json. Raises DataError where the workdir cannot be written."""
    versions = {"llava_jax": llava_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    devices = {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "mesh": dict(mesh.shape)}
    try:
        write_json(workdir / "config.json", dataclasses.asdict(config))
        write_json(workdir / "metadata.json", {"argv": argv, "versions": versions, "devices": devices})
    except OSError as e:
        raise DataError(f"workdir {workdir} cannot be written ({e.strerror or e}); choose another --workdir") from None


def checkpoint_record(config: Config, index: int, stage: str, evaluated: bool, guard: dict) -> dict:
    """The record of the run in a checkpoint."""
    return {"stage": stage, "index": index, "evaluated": evaluated, "guard": guard, "config": _as_json(config)}


def find_resumable(store: CheckpointStore, config: Config, log: Callable[[str], None]) -> Resumed | None:
    """The newest intact checkpoint, None without any. Newer damaged ones are logged and moved aside. Raises ConfigError
    where it is of another model or of other stages, DataError where all checkpoints are damaged."""
    newest = store.latest_intact()
    for note in newest.notes:
        log(note)
    step = newest.step
    if step is None:
        return None
    record = store.read_run(step)
    old, new = record["config"], _as_json(config)
    for key in ("vision", "llm", "projector", "select_layer", "select_feature"):
        if old["model"][key] != new["model"][key]:
            raise ConfigError(
                f"the workdir holds a run with model.{key}={old['model'][key]!r}, the config says "
                f"{new['model'][key]!r}; resume with the same model, or choose another --workdir"
            )
    stages_begun = record["index"] + 1
    if old["run"][:stages_begun] != new["run"][:stages_begun]:
        raise ConfigError(
            f"the workdir holds a run of stages {old['run']}, the config runs {new['run']}; choose another --workdir"
        )
    if newest.damaged:
        store.quarantine(newest.damaged)
    return Resumed(step, record["index"], record["stage"], record["evaluated"], record.get("guard"))


def write_json(path: Path, value) -> None:
    """Writes the file atomically, on process 0."""
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(value, indent=1))


def read_json(path: Path) -> dict:
    """The object in a JSON file, {} where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _as_json(config: Config) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))
