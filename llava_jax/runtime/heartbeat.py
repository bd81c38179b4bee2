"""The heartbeat files of a workdir: in `alive/<process>.json` each process writes that it lives, and what it does."""

import dataclasses
import json
import time
from pathlib import Path

READING = "reading rows"
ENDED, STALLED = "ended: ", "ended: no step for "


@dataclasses.dataclass(frozen=True)
class ProcessStatus:
    """The content of a heartbeat file.

    count: activities that the process has begun; all processes begin the same ones in the same order. step: global
    step. what: the newest activity. slow: it may last longer than a step. ready: rows that are made of the batch that
    it reads. sign: nanoseconds, another number in each heartbeat.
    """

    count: int = 0
    step: int = 0
    what: str = "starting"
    slow: bool = True
    ready: int = 0
    sign: int = 0


class Heartbeat:
    """Writes the file of this process and reads those of the others; files of an earlier run count as not written."""

    def __init__(self, folder: Path, index: int, count: int):
        """folder: the workdir. index: of this process, of `count`. Writes the first heartbeat; raises OSError."""
        self.folder, self._index, self._count = folder / "alive", index, count
        self._earlier: dict[int, int] = {}  # process -> the sign in the file of an earlier run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(ProcessStatus())
        self._earlier = {process: status.sign for process, status in self.read_others().items() if status}

    def write(self, status: ProcessStatus) -> None:
        """Writes a heartbeat with a new sign. Raises OSError."""
        # Not under another name, to be renamed: an open file is what a shared folder keeps least out of date.
        text = json.dumps(dataclasses.asdict(dataclasses.replace(status, sign=time.time_ns())))
        (self.folder / f"{self._index}.json").write_text(text, encoding="utf-8")

    def read_others(self) -> dict[int, ProcessStatus | None]:
        """Process -> its status, None where the file cannot be read: it is not there yet, or half written."""
        return {process: self._read(process) for process in range(self._count) if process != self._index}

    def _read(self, process: int) -> ProcessStatus | None:
        try:
            status = ProcessStatus(**json.loads((self.folder / f"{process}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return ProcessStatus() if status.sign == self._earlier.get(process) else status
