"""The steps that were not applied: counted, told, written down with their samples and norms, and too many in a row end
the run.

Whether a step is applied is decided in the jitted step itself (step.py). The host learns of it one step later.
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

SKIPPED = "skipped"  # the folder in the workdir


class StepGuard:
    """Counts the skipped steps of a stage and knows which loss is a spike.

    Only the losses of applied steps are remembered, so a bad one cannot move the median. `limit` looks two steps back,
    at what a run that never waits for a step has read; a run that was stopped and goes on then decides the same.
    """

    def __init__(self, settings: config.StepGuardConfig, record: dict | None = None):
        """record: what `record()` was when the checkpoint was saved; None at the beginning of a stage."""
        self._settings = settings
        self.skipped, self.in_a_row, self._losses = 0, 0, []
        if record:
            self.skipped, self.in_a_row, self._losses = record["skipped"], record["in_a_row"], record["losses"]

    def record(self) -> dict:
        """Fit for JSON."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "losses": self._losses}

    def spike_above(self, step: int) -> float:
        """The loss (inf for none) above which step number `step`, 1 for the first of the stage, is a spike."""
        window = self._settings.window
        past = [loss for at, loss in self._losses if at <= step - 2][-window:]
        if not self._settings.spike or len(past) < window:
            return math.inf
        return float(np.float32(self._settings.spike * np.median(past)))

    def limit(self, step: int) -> np.float32:
        """The loss above which step number `step` is not to be applied."""
        return np.float32(self.spike_above(step) if self._settings.on_spike == "skip" else math.inf)

    def update(self, step: int, loss: float, applied: bool) -> None:
        """Takes note of a step. Steps come in their order."""
        if not applied:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return
        self.in_a_row = 0
        if self._settings.spike:
            self._losses = [*self._losses, [step, loss]][-self._settings.window - 2 :]  # what `spike_above(step)` needs

    def has_too_many(self) -> bool:
        """Whether more steps in a row were skipped than the run may survive."""
        return self.in_a_row > self._settings.in_a_row

    def reason(self, step: int, values: dict[str, float]) -> str:
        """What is wrong with a step's `loss` or `grad_norm`, in words."""
        loss, grad_norm = values["loss"], values["grad_norm"]
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm}"
        return f"the loss {loss:.4f} is above {self.spike_above(step):.4f}, {self._settings.spike:g} x the median"


def sample_ids(rows: Rows, index: np.ndarray) -> list[str]:
    """The ids of a batch's samples, all of each row, fillers left out, in the order of the global batch. Every process
    must call it.

    index: int64[b], this process's part of the batch, in `rows`.
    """
    # As int32 pairs: on its way through the devices an int64 would lose its upper half.
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
    """Writes down a skipped step: `about` (with its `stage` and `step`), its samples, and norms by kind and parameter,
    which are also summed up by module. Numbers that are not finite become text, for JSON has none. Returns the file."""
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
