"""The list of samples that were replaced because they could not be read, and the ceiling over their number."""

import json
from pathlib import Path

import jax

from llava_jax.errors import DataError
from llava_jax.output.files import write_atomically

MAX_LOGGED = 10  # replaced samples of a stage that are told on the terminal; all are in the file


class BadSampleLog:
    """What was replaced in one stage. Every process lists its own in `bad_samples.jsonl` (process p > 0:
    `bad_samples-p.jsonl`); `count` is of all processes together, from the device, and so the same everywhere."""

    def __init__(self, folder: Path, stage: str, step: int, count: int, samples: int, ceiling: float, log):
        """step: global step of the state; what the lists say about later ones is about to be written again.
        count: replaced up to there in this stage. samples: those that the whole stage shows. ceiling: a share of them.
        """
        self.stage, self.count, self.samples, self.ceiling = stage, count, samples, ceiling
        self._log, self._logged = log, 0
        self.path = _path(folder, jax.process_index())
        others = [p for p in folder.glob("bad_samples-*.jsonl") if _index(p) >= jax.process_count()]
        for path in [self.path, *(others if jax.process_index() == 0 else [])]:  # those of a run with more processes
            if path.exists():
                lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
                past = "".join(line for line in lines if json.loads(line)["step"] <= step)
                write_atomically(path, past)

    def record(self, step: int, replaced: list[dict]) -> None:
        """Lists what was replaced in this process's rows of the batch of global step `step`. In the file at return, so
        that no checkpoint of a killed run knows more than the list."""
        if not replaced:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for entry in replaced:
                file.write(json.dumps({"step": step, "stage": self.stage, **entry}) + "\n")
        for entry in replaced[: max(0, MAX_LOGGED - self._logged)]:
            self._log(f"replaced by sample {entry['substitute']!r}: {entry['reason']}")
        self._logged += len(replaced)

    def add(self, count: int) -> None:
        """Counts what was replaced in a step, in all processes. Raises DataError beyond the ceiling."""
        self.count += count
        if count and self.count > self.ceiling * self.samples:
            raise DataError(
                f"{self.count} of the {self.samples:,} samples that stage {self.stage} shows had to be replaced, "
                f"data.bad_ceiling={self.ceiling:g} allows {self.ceiling * self.samples:.1f}. Which and why is in "
                f"{self.path}. Repair the images or raise the ceiling, and the same command continues; texts that are "
                "repaired change what packed rows hold, and take a new run"
            )


def _path(folder: Path, process: int) -> Path:
    return folder / (f"bad_samples-{process}.jsonl" if process else "bad_samples.jsonl")


def _index(path: Path) -> int:
    """The number of the process that wrote a list; -1 for a file that is none."""
    digits = path.stem.removeprefix("bad_samples-")
    return int(digits) if digits.isdigit() else -1
