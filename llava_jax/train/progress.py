"""The progress line of a run: loss, speed, utilization, time left."""

import time

import jax

from llava_jax.runtime.accelerators import PEAK_TFLOPS


class Progress:
    """Smoothed step time and the progress line, without the time for compiling, evaluating and saving."""

    def __init__(self, name: str, steps: int, tokens_per_step: int, flops_per_step: float):
        self.name, self.steps, self.tokens, self.flops = name, steps, tokens_per_step, flops_per_step
        self._step_time = self._data_wait = self._tokens = None
        self._last = None

    def pause(self) -> None:
        """Excludes the time until the next `tick`."""
        self._last = None

    def tick(self, data_wait: float, tokens: int | None = None) -> float | None:
        """Called once per step. Returns the seconds since the last call, None after a pause. data_wait: seconds spent
        waiting for data. tokens: those of the global batch, where row lengths vary."""
        now = time.perf_counter()
        elapsed = None if self._last is None else now - self._last
        self._last = now
        if elapsed is not None:
            smooth = 0.9 if self._step_time is not None else 0.0
            self._step_time = smooth * (self._step_time or 0.0) + (1 - smooth) * elapsed
            self._data_wait = smooth * (self._data_wait or 0.0) + (1 - smooth) * data_wait
            self._tokens = smooth * (self._tokens or 0.0) + (1 - smooth) * (tokens or self.tokens)
        return elapsed

    def mfu(self) -> float | None:
        """Model FLOP/s divided by the peak of all devices; None where the peak is unknown."""
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
            f" (data {100 * self._data_wait / self._step_time:.0f}%)"
            + (f" | MFU {100 * mfu:.0f}%" if mfu is not None else "")
            + f" | ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )
