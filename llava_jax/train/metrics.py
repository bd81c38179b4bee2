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

from llava_jax.output.files import write_atomically

FLUSH_SECONDS = 10  # seconds


class MetricsWriter:
    """Appends records to the workdir; on processes other than 0 it writes nothing. All of it raises OSError."""

    def __init__(self, workdir: Path, is_kept: Callable[[dict], bool]):
        """Of records that are already there, only those that `keeps` says yes to stay."""
        self._files, self._tensorboard, self._flushed_at = {}, None, time.monotonic()
        if jax.process_index() != 0:
            return
        newest = 0
        for name in ("metrics", "timing"):
            path = workdir / f"{name}.jsonl"
            kept = [line for line in _complete_lines(path) if is_kept(json.loads(line))]
            newest = max([newest, *(json.loads(line)["step"] for line in kept)])
            write_atomically(path, "".join(kept))
            self._files[name] = path.open("a", encoding="utf-8")
        (workdir / "tb").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then the run waits for it forever.
        self._tensorboard = EventsWriter(str(workdir / "tb" / "events"))
        self._tensorboard.write_event(Event(step=newest + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, kind: str, step: int, values: dict) -> None:
        """kind: `metrics` or `timing`; step: global step. Numbers also go to TensorBoard."""
        if not self._files:
            return
        self._files[kind].write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed_at = time.monotonic()
        for file in self._files.values():
            file.flush()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._tensorboard:
            self._tensorboard.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a killed process may leave half a record."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
