"""What a run writes while it trains: metrics.jsonl, timing.jsonl, TensorBoard, and one progress line now and then.

`metrics.jsonl` holds only what the run's config and data decide, so two equal runs (or one that was killed and resumed)
write equal files; everything a clock decides goes to `timing.jsonl`. Both are cut back to the restored step on resume.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from llava_jax.config.architectures import ModelConfig
from llava_jax.planning.topologies import GENERATIONS

# Dense bf16 peak, TFLOP/s, and memory, GiB, per device, as jax names it. GPUs: the makers' data sheets.
_GPUS = {
    "NVIDIA A100-SXM4-40GB": (312, 40), "NVIDIA A100-SXM4-80GB": (312, 80), "NVIDIA H100 80GB HBM3": (989, 80),
    "NVIDIA H200": (989, 141),
}  # fmt: skip
_TPUS = {g.kind: (g.peak_tflops / g.cores, g.hbm_gib) for g in GENERATIONS.values()}
_TPUS["TPU v5p"] = _TPUS["TPU v5"]  # its other name
PEAK_TFLOPS = {kind: peak for kind, (peak, _) in (_TPUS | _GPUS).items()}
MEMORY_GIB = {kind: memory for kind, (_, memory) in (_TPUS | _GPUS).items()}

FLUSHED_EVERY = 10  # seconds


class MetricsWriter:
    """Appends records to the workdir; on processes other than 0 it writes nothing. All of it raises OSError."""

    def __init__(self, workdir: Path, keeps: Callable[[dict], bool]):
        """Of records that are already there, only those that `keeps` says yes to stay."""
        self._files, self._board, self._flushed = {}, None, time.monotonic()
        if jax.process_index() != 0:
            return
        newest = 0
        for name in ("metrics", "timing"):
            path = workdir / f"{name}.jsonl"
            kept = [line for line in _complete_lines(path) if keeps(json.loads(line))]
            newest = max([newest, *(json.loads(line)["step"] for line in kept)])
            partial = path.with_suffix(".partial")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(path)
            self._files[name] = path.open("a", encoding="utf-8")
        (workdir / "tb").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then the run waits for it forever.
        self._board = EventsWriter(str(workdir / "tb" / "events"))
        self._board.write_event(Event(step=newest + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, kind: str, step: int, values: dict) -> None:
        """kind: `metrics` or `timing`; step: global step. Numbers also go to TensorBoard."""
        if not self._files:
            return
        self._files[kind].write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSHED_EVERY:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        for file in self._files.values():
            file.flush()
        if self._board:
            self._board.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board:
            self._board.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a killed process may leave half a record."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


class Progress:
    """Smoothed step time and the progress line; time outside steps (compiling, evaluating, saving) does not count."""

    def __init__(self, name: str, steps: int, tokens_per_step: int, flops_per_step: float):
        self.name, self.steps, self.tokens, self.flops = name, steps, tokens_per_step, flops_per_step
        self._step_time = self._wait = self._tokens = None
        self._last = None

    def pause(self) -> None:
        """Whatever happens until the next `tick` is not a step."""
        self._last = None

    def tick(self, waited: float, tokens: int | None = None) -> float | None:
        """Once per step, with the seconds it waited for data -> seconds since the last tick, None after a pause.

        tokens: those of the step's global batch, where rows are of several lengths.
        """
        now = time.perf_counter()
        elapsed = None if self._last is None else now - self._last
        self._last = now
        if elapsed is not None:
            smooth = 0.9 if self._step_time is not None else 0.0
            self._step_time = smooth * (self._step_time or 0.0) + (1 - smooth) * elapsed
            self._wait = smooth * (self._wait or 0.0) + (1 - smooth) * waited
            self._tokens = smooth * (self._tokens or 0.0) + (1 - smooth) * (tokens or self.tokens)
        return elapsed

    def mfu(self) -> float | None:
        """Model FLOPs per second over the peak of all devices, None where the peak is not known."""
        peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind)
        if peak is None or not self._step_time:
            return None
        return self.flops * (self._tokens / self.tokens) / self._step_time / (peak * 1e12 * jax.device_count())

    def line(self, step: int, loss: float) -> str:
        head = f"{self.name} {step}/{self.steps} {100 * step // self.steps:3d}% | loss {loss:.4f}"
        if not self._step_time:
            return head
        left = int((self.steps - step) * self._step_time)
        mfu = self.mfu()
        return (
            f"{head} | {self._tokens / self._step_time:,.0f} tok/s | {self._step_time:.3f} s/step"
            f" (data {100 * self._wait / self._step_time:.0f}%)"
            + (f" | MFU {100 * mfu:.0f}%" if mfu is not None else "")
            + f" | ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )


def model_flops(
    config: ModelConfig, sizes: dict[str, int], trained: set[str], rows: int, length: int, images: int
) -> float:
    """Model FLOPs of one step (no recomputation, causal attention counted half): 2 per weight and token forward, 2 more
    for the gradient of the input where something before it trains, 2 more for the gradient of a trained weight.

    sizes: path -> number of weights. rows: rows per step. images: image slots per row.
    """
    v, m = config.vision, config.llm
    order = ("vision", "projector", "llm")
    tokens = {"vision": rows * images * (v.patches + 1), "projector": rows * images * v.features, "llm": rows * length}
    total = 0.0
    for path, size in sizes.items():
        module = path.split("/")[0]
        if "embedding" in path and not (path.startswith("llm/") and m.tied_head):
            continue  # a look-up, not a product
        if path.startswith("vision/layers/"):
            size = size * v.blocks_used // v.layers  # the blocks behind the selected one never run
        behind = any(order.index(t.split("/")[0]) <= order.index(module) and t != path for t in trained)
        total += 2 * size * tokens[module] * (1 + behind + (path in trained))
    seen = 2 * 2 * rows * images * (v.patches + 1) ** 2 * v.blocks_used * v.width
    total += seen * (3 if any(p.startswith("vision/") for p in trained) else 1)
    attended = 2 * 2 * rows * length * (length / 2) * m.layers * m.heads * m.head_size
    return total + attended * (3 if trained else 1)
