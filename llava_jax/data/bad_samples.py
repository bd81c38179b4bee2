"""The log of samples that were replaced because they could not be read, and the limit on their number."""

import json
from pathlib import Path

from llava_jax.errors import DataError
from llava_jax.output.files import write_atomically

MAX_LOGGED = 10  # replaced samples per stage that are reported on the terminal; all are in the file


class BadSampleLog:
    """The replaced samples of one stage. Every process lists those of its rows in `bad_samples.jsonl` (process p > 0:
    `bad_samples-p.jsonl`). `count` covers all processes and is the same on each, because it comes from the device."""

    def __init__(
        self, folder: Path, stage: str, step: int, count: int, samples: int, ceiling: float, log,
        process: int = 0, processes: int = 1,
    ):  # fmt: skip
        """step: global step of the state; entries of later steps are removed. count: samples replaced up to it in this
        stage. samples: number of samples shown in the whole stage. ceiling: the share of them that may be replaced.
        process: the index of this one of `processes`."""
        self.stage, self.count, self.samples, self.ceiling = stage, count, samples, ceiling
        self._log, self._logged = log, 0
        self.path = _path(folder, process)
        others = [p for p in folder.glob("bad_samples-*.jsonl") if _index(p) >= processes]
        for path in [self.path, *(others if process == 0 else [])]:  # of a run with more processes
            if path.exists():
                lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
                past = "".join(line for line in lines if json.loads(line)["step"] <= step)
                write_atomically(path, past)

    def record(self, step: int, replaced: list[dict]) -> None:
        """Lists the samples replaced in this process's rows of the batch of global step `step`. The file is written on
        return, so that no checkpoint of a killed run counts more than the list."""
        if not replaced:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for entry in replaced:
                file.write(json.dumps({"step": step, "stage": self.stage, **entry}) + "\n")
        for entry in replaced[: max(0, MAX_LOGGED - self._logged)]:
            self._log(f"{entry['reason']}; replaced by sample {entry['substitute']!r}")
        self._logged += len(replaced)

    def add(self, count: int) -> None:
        """Adds the samples that all processes replaced in a step. Raises DataError above the ceiling."""
        self.count += count
        if count and self.count > self.ceiling * self.samples:
            raise DataError(
                f"{self.count} of the {self.samples:,} samples that stage {self.stage} shows had to be replaced, "
                f"data.bad_ceiling={self.ceiling:g} allows {self.ceiling * self.samples:.1f}. {self.path} lists "
                "them with the reasons. Repair the images or raise the ceiling, then resume with the same command; "
                "repaired texts change the content of packed rows and need a new run"
            )


def _path(folder: Path, process: int) -> Path:
    return folder / (f"bad_samples-{process}.jsonl" if process else "bad_samples.jsonl")


def _index(path: Path) -> int:
    """Index of the process that wrote a list; -1 for any other file."""
    digits = path.stem.removeprefix("bad_samples-")
    return int(digits) if digits.isdigit() else -1
