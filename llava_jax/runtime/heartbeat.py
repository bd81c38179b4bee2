"""The heartbeat files of a workdir: each process writes its current activity to `alive/<process>.json`."""

import dataclasses
import json
import time
from pathlib import Path

READING = "reading rows"
ENDED, STALLED = "ended: ", "ended: no step for "


@dataclasses.dataclass(frozen=True)
class ProcessStatus:
    """The content of a heartbeat file.

    count: number of activities begun so far; all processes begin the same ones in the same order. step: global step.
    what: the current activity. slow: it may last longer than a step. ready: finished rows of the batch being read.
    sign: nanoseconds, different in each heartbeat.
    """

    count: int = 0
    step: int = 0
    what: str = "starting"
    slow: bool = True
    ready: int = 0
    sign: int = 0


class Heartbeat:
    """Writes the file of this process and reads those of the others. Ignores files of an earlier run."""

    def __init__(self, folder: Path, index: int, count: int):
        """Writes the first heartbeat of process `index` of `count` to the workdir `folder`. Raises OSError."""
        self.folder, self._index, self._count = folder / "alive", index, count
        self._earlier: dict[int, int] = {}  # process -> `sign` of an earlier run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(ProcessStatus())
        self._earlier = {process: status.sign for process, status in self.read_others().items() if status}

    def write(self, status: ProcessStatus) -> None:
        """Writes a heartbeat with a new sign. Raises OSError."""
        # Written in place, not renamed: shared file systems update an existing file soonest.
        text = json.dumps(dataclasses.asdict(dataclasses.replace(status, sign=time.time_ns())))
        (self.folder / f"{self._index}.json").write_text(text, encoding="utf-8")

    def read_others(self) -> dict[int, ProcessStatus | None]:
        """Process -> its status, None where the file is missing or incomplete."""
        return {process: self._read(process) for process in range(self._count) if process != self._index}

    def _read(self, process: int) -> ProcessStatus | None:
        try:
            status = ProcessStatus(**json.loads((self.folder / f"{process}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return ProcessStatus() if status.sign == self._earlier.get(process) else status
