"""The metrics files of a run: metrics.jsonl, timing.jsonl and TensorBoard.

`metrics.jsonl` is deterministic: equal runs write equal files, also after a kill and a resume. Durations go to
`timing.jsonl`. On resume both are truncated to the restored step.
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

FLUSH_SECONDS = 10


class MetricsWriter:
    """Appends records to the files in the workdir; only process 0 writes. All methods raise OSError."""

    def __init__(self, workdir: Path, is_kept: Callable[[dict], bool]):
        """Removes the existing records for which `is_kept` is False."""
        self._files, self._writers, self._flushed_at = {}, [], time.monotonic()
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
        # Not SummaryWriter: its thread dies when the disk is full, and then the run waits for it forever.
        self._tensorboard = EventsWriter(str(workdir / "tb" / "events"))
        self._tensorboard.write_event(Event(step=newest + 1, session_log=SessionLog(status=SessionLog.START)))
        self._writers = [*self._files.values(), self._tensorboard]

    def write(self, kind: str, step: int, values: dict) -> None:
        """Appends a record to `metrics` or `timing` (`kind`), and its numbers to TensorBoard. step: global step."""
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
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def _complete_lines(path: Path) -> list[str]:
    """The lines that end in a newline: a killed process may leave an incomplete record."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
