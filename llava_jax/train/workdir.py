"""The workdir of a run: what it was started with, and the checkpoint from which it resumes."""

import dataclasses
import json
import platform
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

import llava_jax
from llava_jax.checkpoint.native.resume_rules import as_json, compare_settings
from llava_jax.checkpoint.native.run_inputs import tokenizer_digest, write_run_inputs
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.config.architectures import ModelConfig
from llava_jax.config.schema import Config
from llava_jax.data.sources.combine import ids_of_sources
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import write_atomically
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.train.stages import StageSetup


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


def write_run_files(
    workdir: Path, config: Config, argv: list[str], mesh: Mesh, tokenizer: Tokenizer, model_config: ModelConfig
) -> None:
    """Writes config.json, metadata.json, the tokenizer and the architecture. Raises DataError where the workdir cannot
    be written."""
    versions = {"llava_jax": llava_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    devices = {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "mesh": dict(mesh.shape)}
    try:
        write_run_inputs(workdir, tokenizer, config.tokenizer, model_config)
        write_json(workdir / "config.json", dataclasses.asdict(config))
        write_json(workdir / "metadata.json", {"argv": argv, "versions": versions, "devices": devices})
    except OSError as e:
        raise DataError(f"workdir {workdir} cannot be written ({e.strerror or e}); choose another --workdir") from None


def stage_records(config: Config, tokenizer: Tokenizer, setups: list[StageSetup]) -> list[dict]:
    """What the checkpoints of each stage record of the run; see `compare_settings`."""
    run = {"config": as_json(dataclasses.asdict(config)), "tokenizer": tokenizer_digest(tokenizer)}
    records = []
    for s in setups:
        names = sorted(path for path, _, _ in s.stage.data.mixture) or [s.stage.data.path]
        samples = ids_of_sources(names, s.data.train.source)
        records.append(run | {"stage": s.name, "index": s.index, "start": s.start_step, "samples": samples})
    return records


def find_resumable(
    store: CheckpointStore, folder: Path, setups: list[StageSetup], records: list[dict], log: Callable[[str], None]
) -> Resumed | None:
    """The newest intact checkpoint, None without any. Changed settings and newer damaged checkpoints are logged, and
    the latter moved aside. records: of each stage, see `stage_records`. Raises ConfigError where the settings or the
    data do not continue the run of the checkpoint, DataError where all checkpoints are damaged."""
    newest = store.latest_intact()
    for note in newest.notes:
        log(note)
    step = newest.step
    if step is None:
        return None
    old = store.read_run(step)
    index = min(old["index"], len(records) - 1)
    trained = [path for path, (part, *_) in store.param_metadata(step).items() if part == "trainable"]
    new = records[index] | {"trained": list(setups[index].layout.abstract.trainable)}
    for line in compare_settings(str(folder), old | {"trained": trained}, new):
        log(line)
    if "start" in old:  # older checkpoints are checked after they are restored
        check_stage_length(setups[index], step - old["start"], step)
    if newest.damaged:
        store.quarantine(newest.damaged)
    return Resumed(step, old["index"], old["stage"], old["evaluated"], old.get("guard"))


def check_stage_length(setup: StageSetup, step: int, global_step: int) -> None:
    """Raises ConfigError where the lengths of the stages do not fit a checkpoint. step: within its stage."""
    if setup.start_step + step != global_step or step > setup.data.steps:
        raise ConfigError(
            f"checkpoint {global_step} is step {step} of stage {setup.name}, which now has {setup.data.steps} steps "
            f"from {setup.start_step} on; restore the stages' lengths, or choose another --workdir"
        )


def write_json(path: Path, value) -> None:
    """Writes the file atomically, on process 0."""
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(value, indent=1))


def read_json(path: Path) -> dict:
    """The object in a JSON file, {} where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
