"""Counts skipped steps and writes them down with their samples and norms; detects loss spikes.

The jitted step (step.py) decides whether it is applied. The host reads the decision one step later.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llava_jax import config
from llava_jax.data.pipeline import FILLER
from llava_jax.data.rows import Rows
from llava_jax.models.params import Params
from llava_jax.train.workdir import write_json

SKIPPED = "skipped"  # folder in the workdir


class StepGuard:
    """Counts the skipped steps of a stage and decides which loss is a spike.

    Only losses of applied steps are kept, so that a spike cannot move the median. The limit of a step uses losses up to
    two steps before, which a run that never waits for a step has read. So a resumed run decides the same.
    """

    def __init__(self, settings: config.StepGuardConfig, record: dict | None = None):
        """record: the `record()` in the checkpoint; None at the start of a stage."""
        self._settings = settings
        self.skipped, self.in_a_row, self._losses = 0, 0, []
        if record:
            self.skipped, self.in_a_row, self._losses = record["skipped"], record["in_a_row"], record["losses"]

    def record(self) -> dict:
        """The state for the checkpoint, as JSON values."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "losses": self._losses}

    def spike_above(self, step: int) -> float:
        """The loss above which step number `step` of the stage, 1 for the first, is a spike; inf if none is."""
        window = self._settings.window
        past = [loss for at, loss in self._losses if at <= step - 2][-window:]
        if not self._settings.spike or len(past) < window:
            return math.inf
        return float(np.float32(self._settings.spike * np.median(past)))

    def limit(self, step: int) -> np.float32:
        """The loss above which step number `step` is not applied."""
        return np.float32(self.spike_above(step) if self._settings.on_spike == "skip" else math.inf)

    def update(self, step: int, loss: float, applied: bool) -> None:
        """Records a step. Steps must come in order."""
        if not applied:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return
        self.in_a_row = 0
        if self._settings.spike:
            self._losses = [*self._losses, [step, loss]][-self._settings.window - 2 :]  # as many as `spike_above` needs

    def has_too_many(self) -> bool:
        """Whether more steps in a row were skipped than the settings allow."""
        return self.in_a_row > self._settings.in_a_row

    def reason(self, step: int, values: dict[str, float]) -> str:
        """The message about a bad `loss` or `grad_norm` of step number `step`."""
        loss, grad_norm = values["loss"], values["grad_norm"]
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm}"
        return f"the loss {loss:.4f} is above {self.spike_above(step):.4f}, {self._settings.spike:g} x the median"


def sample_ids(rows: Rows, index: np.ndarray) -> list[str]:
    """The ids of all samples of a batch, in the order of the global batch, without fillers. index: int64[b], indices
    into `rows` of this process's part. Every process must call it."""
    # As int32 pairs: on the devices an int64 would lose its upper half.
    pairs = multihost_utils.process_allgather(index.astype(np.int64).view(np.int32).reshape(-1, 2), tiled=True)
    index = np.ascontiguousarray(pairs).view(np.int64).ravel()
    return [name for i in index if i != FILLER for name in rows.names(int(i))]


def parameter_norms(params: Params, mesh: Mesh) -> dict[str, float]:
    """Path -> norm. Every process must call it."""

    def norms(params):
        return {path: optax.global_norm(x.astype(jnp.float32)) for path, x in params.items()}

    values = jax.jit(norms, out_shardings=NamedSharding(mesh, PartitionSpec()))(params)
    return {path: float(x) for path, x in values.items()}


def write_skipped(folder: Path, record: dict, samples: list[str], norms: dict[str, dict[str, float]]) -> Path:
    """Writes the file of a skipped step and returns its path. record: with `stage` and `step`. norms: kind -> parameter
    path -> norm; also summed up by module. Non-finite numbers become strings, because JSON has none."""
    (folder / SKIPPED).mkdir(exist_ok=True)
    file = folder / SKIPPED / f"{record['stage']}-{record['step']:06d}.json"
    modules = {kind: _by_module(by_path) for kind, by_path in norms.items()}
    write_json(file, _to_json_values({**record, "samples": samples, "modules": modules, "parameters": norms}))
    return file


def _by_module(norms: dict[str, float]) -> dict[str, float]:
    squares = {}
    for path, norm in norms.items():
        module = path.split("/")[0]
        squares[module] = squares.get(module, 0.0) + norm * norm
    return {module: math.sqrt(total) for module, total in squares.items()}


def _to_json_values(value):
    if isinstance(value, dict):
        return {key: _to_json_values(item) for key, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
