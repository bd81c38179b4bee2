"""Trains the quickstart's model with 1, 2 and 4 processes on this machine, kills some of them, and compares:

    python launch/bench/check_processes.py [--config=FILE] [--steps=20] [--folder=DIR]

- losses, gradient norms and target counts of 2 and 4 processes equal those of 1 process, at every step;
- so do those of a run that starts with 2 processes, resumes with 4 and ends with 1, and in two other orders;
- if one of 2 or 4 processes is killed, the others end within 120 seconds and name it; the same command then resumes the
  run, and its result is byte-equal to that of an uninterrupted run with as many processes.

In float32, with gradient accumulation, one CPU device per process. Prints a line per check; exit code 1 if one fails.
"""

import argparse
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import check_resume
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "--config.run=('stage2',)", "--config.log_every=1", "--config.checkpoint.every=4",
    "--config.stages.stage2.accumulation=2", "--config.stages.stage2.eval.before=False",
    "--config.stages.stage2.eval.questions=0", "--config.stages.stage2.eval.answers=0",
    "--config.stages.stage2.eval.samples=32", "--config.stages.stage2.data.threads=1",
)  # fmt: skip
WITHIN = 1e-6
KILLED_WITHIN = 120  # seconds


def start(config: Path, workdir: Path, compiled: Path, count: int, *flags: str, **more) -> list[check_resume.Run]:
    """Starts `count` processes that train one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        cluster = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={count}"]
    process_flags = [(*cluster, f"--process={i}") for i in range(count)] if count > 1 else [()]
    return [check_resume.Run(config, workdir, compiled, *flags, *more_flags, **more) for more_flags in process_flags]


def texts(runs: list[check_resume.Run]) -> str:
    return "\n\n".join(f"--- process {i}:\n{run.text()[-3000:]}" for i, run in enumerate(runs))


def relative_differences(workdir: Path, reference: Path) -> dict[str, float]:
    """Returns the largest relative difference of each metric of two runs. Raises ValueError if their steps differ."""
    ours, theirs = (
        [json.loads(line) for line in (w / "metrics.jsonl").open(encoding="utf-8")] for w in (workdir, reference)
    )
    if [(r["step"], r.keys()) for r in ours] != [(r["step"], r.keys()) for r in theirs]:
        raise ValueError(f"{workdir} and {reference} have metrics of different steps")
    differences = {}
    for name in ("loss", "grad_norm", "targets"):
        a, b = (np.array([r[f"train/{name}"] for r in run if f"train/{name}" in r]) for run in (ours, theirs))
        differences[name] = float(np.max(np.abs(a - b) / np.abs(b)))
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.py", help="with a stage `stage2`")
    parser.add_argument("--steps", type=int, default=20, help="at least 6")
    parser.add_argument("--folder", type=Path, help="folder of the runs; default: a temporary one")
    args = parser.parse_args()
    failed = []

    def verdict(passed: bool, text: str) -> None:
        print(f"{'ok' if passed else 'FAILED'}: {text}", flush=True)
        failed.extend([] if passed else [text])

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)

        def start_run(name: str, count: int) -> list[check_resume.Run]:
            flags = (*QUICK, f"--config.stages.stage2.steps={args.steps}")
            return start(args.config, folder / name, folder / "compiled", count, *flags)

        def finish(name: str, count: int) -> None:
            runs = start_run(name, count)
            if any([run.wait() for run in runs]):
                raise SystemExit(f"{name} failed:\n{texts(runs)}")

        def compare(name: str, counts: str) -> None:
            differences = relative_differences(folder / name, folder / "1")
            text = ", ".join(f"{key} {value:.1e}" for key, value in differences.items())
            verdict(max(differences.values()) <= WITHIN, f"processes: {counts}: {text} from 1 over {args.steps} steps")

        for count in (1, 2, 4):
            finish(str(count), count)
            if count > 1:
                compare(str(count), str(count))

        for counts in ((2, 4, 1), (1, 2, 4), (4, 1, 2)):
            name = "-".join(map(str, counts))
            for turn, count in enumerate(counts[:-1], 1):
                runs = start_run(name, count)
                reached = check_resume.step_is_read("stage2", turn * args.steps // 3)
                if not runs[0].wait_for(reached) or [runs[-1].kill(signal.SIGTERM)] != [143]:
                    raise SystemExit(f"{name} did not stop after SIGTERM:\n{texts(runs)}")
                for run in runs:
                    run.wait()
            finish(name, counts[-1])
            compare(name, f"{counts[0]}, then {counts[1]}, then {counts[2]}")

        for count, victim in ((2, 1), (4, 2), (2, 0)):
            name = f"{count}-killed-{victim}"
            runs = start_run(name, count)
            if not runs[0].wait_for(check_resume.step_is_read("stage2", args.steps // 2)):
                raise SystemExit(f"{name} ended before it was killed:\n{texts(runs)}")
            start_time = time.monotonic()
            runs[victim].kill()
            others = [run for i, run in enumerate(runs) if i != victim]
            codes = [run.wait() for run in others]
            seconds = time.monotonic() - start_time
            verdict(
                seconds < KILLED_WITHIN and 0 not in codes,
                f"process {victim} of {count} killed: the others ended {seconds:.0f} s later with exit codes {codes}",
            )
            # Of process 0 there is only JAX's message, which calls it the leader.
            pattern = (
                rf"process {victim} of {count} has .* no heartbeat|unhealthy.*:\n{victim}$|leader task.*task {victim}\)"
            )
            lines = [re.search(pattern, run.text(), re.M) for run in others]
            verdict(all(lines), "the others name it: " + " | ".join(line[0] if line else texts(runs) for line in lines))
            finish(name, count)
            different = check_resume.differences(
                check_resume.contents(folder / str(count)), check_resume.contents(folder / name)
            )
            verdict(not different, f"the resumed run against an uninterrupted one: differences: {different or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    for name, value in (("JAX_PLATFORMS", "cpu"), ("JAX_NUM_CPU_DEVICES", "1")):
        os.environ.setdefault(name, value)
    sys.exit(main())
