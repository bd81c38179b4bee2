"""Kills runs with SIGKILL at random moments, resumes them until they finish, and compares them with an
uninterrupted run: parameters, optimizer state, iterator state and metrics.jsonl must be byte-equal.

    python launch/bench/check_resume.py --seeds 10 [--config=FILE] [--folder=DIR]

Each seed chooses a moment: a step of the first stage, the border of two stages, a step of the last stage, a save, an
evaluation (if there is one), or three of them in sequence. Prints one line per seed and a summary; exit code 1 if
anything differs.
"""

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "train" / "resume_config.py"
MOMENTS = ("first stage", "border", "last stage", "save", "evaluation")
PATIENCE = 900  # timeout of a run, seconds


class Run:
    """A process of `python -m llava_jax.main`, whose output a thread collects."""

    def __init__(self, config: Path, workdir: Path, compiled: Path, *flags: str, program=("-m", "llava_jax.main")):
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = dict(
            PYTHONPATH=os.pathsep.join(path), JAX_COMPILATION_CACHE_DIR=str(compiled),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )  # fmt: skip
        command = [sys.executable, *program, f"--config={config}", f"--workdir={workdir}", *flags]
        self.workdir, self.lines = workdir, []
        self.process = subprocess.Popen(
            command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def text(self) -> str:
        return "\n".join(list(self.lines))

    def wait_for(self, condition) -> bool:
        """Waits until `condition(self)`; returns False if the process ended first."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < end:
            if condition(self):
                return True
            time.sleep(0.001)
        return False

    def kill(self, signum: int = signal.SIGKILL) -> int:
        self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code


def step_is_read(stage: str, step: int):
    """Returns a condition: the log line of `step`, or of a later step in a resumed run, is printed."""

    def is_reached(run: Run) -> bool:
        return any(int(n) >= step for n in re.findall(rf"^{stage} (\d+)/", run.text(), re.MULTILINE))

    return is_reached


def save_begins(run: Run) -> bool:
    return any((run.workdir / "checkpoints").glob("*tmp*"))


def line_begins(start: str):
    return lambda run: re.search(rf"^{start}", run.text(), re.MULTILINE) is not None


def pick_moment(kind: str, rng: random.Random, stages: list[tuple[str, int]]):
    """Returns (condition to wait for, seconds to wait after it, description)."""
    (first, first_steps), (last, last_steps) = stages[0], stages[-1]
    if kind == "border":
        return line_begins(f"stage {last}:"), rng.uniform(0, 2), "at the border"
    if kind == "save":
        step = rng.randint(1, last_steps - 1)
        reached = step_is_read(last, step)
        return lambda run: reached(run) and save_begins(run), rng.uniform(0, 0.02), f"saving after {last} {step}"
    if kind == "evaluation":
        return line_begins("held out"), rng.uniform(0, 0.5), "evaluating"
    stage, steps = (first, first_steps) if kind == "first stage" else (last, last_steps)
    step = rng.randint(1, steps)
    return step_is_read(stage, step), rng.uniform(0, 0.2), f"{stage} {step}"


def kill_and_finish(
    config: Path, workdir: Path, compiled: Path, kinds: list[str], rng: random.Random, stages: list[tuple[str, int]]
) -> list[str]:
    """Kills and resumes a run at each of these moments until it finishes. Returns the descriptions of the moments."""
    kills = []
    for kind in kinds:
        condition, delay, description = pick_moment(kind, rng, stages)
        run = Run(config, workdir, compiled)
        if run.wait_for(condition):
            time.sleep(delay)
        if run.kill() == -signal.SIGKILL:
            kills.append(description)
    finish(Run(config, workdir, compiled))
    return kills


def finish(run: Run) -> None:
    if code := run.wait():
        raise SystemExit(f"the run in {run.workdir} ended with exit code {code}:\n{run.text()[-3000:]}")


def contents(workdir: Path) -> dict[str, str]:
    """Returns SHA-256 digests: metrics.jsonl, and each array and the iterator state of the latest checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    latest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as checkpointer:
        # On one device: the checkpoint may be from several processes, whose devices this one does not have.
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        metadata = ocp.PyTreeCheckpointHandler().metadata(latest / "state").tree
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata)
        state = checkpointer.restore(latest / "state", abstract)
    digests = {"metrics.jsonl": digest((workdir / "metrics.jsonl").read_bytes()), "checkpoint": latest.name}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        x = np.asarray(x)
        digests[jax.tree_util.keystr(path)] = f"{x.dtype} {x.shape} {digest(x.tobytes())}"
    digests["data"] = digest((latest / "data" / "metadata").read_bytes())
    return digests


def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--config", type=Path, default=CONFIG, help="needs log_every = 1 and at least one stage")
    parser.add_argument("--folder", type=Path, help="folder of the runs; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        reference = Run(args.config, folder / "reference", folder / "compiled")
        finish(reference)
        stages = [(n, int(k)) for n, k in re.findall(r"^stage (\S+): (\d+) steps", reference.text(), re.MULTILINE)]
        expected = contents(folder / "reference")
        arrays = sum(name.startswith("[") or name.startswith(".") for name in expected)
        print(f"reference: checkpoint {expected['checkpoint']}, {arrays} arrays", flush=True)
        moments = [m for m in MOMENTS if m != "evaluation" or re.search("^held out", reference.text(), re.MULTILINE)]
        failed = 0
        for seed in range(args.seeds):
            rng, workdir = random.Random(seed), folder / f"seed-{seed}"
            turn = seed % (len(moments) + 1)
            kinds = [moments[turn]] if turn < len(moments) else rng.choices(moments, k=3)
            kills = kill_and_finish(args.config, workdir, folder / "compiled", kinds, rng, stages)
            differing = differences(expected, contents(workdir))
            failed += bool(differing) or not kills
            verdict = (
                f"DIFFERENT in {len(differing)}: {', '.join(differing[:4])}"
                if differing
                else "equal"
                if kills
                else "NEVER KILLED"
            )
            print(f"seed {seed}: killed {' and '.join(kills) or 'never'}: {verdict}", flush=True)
        print(f"{args.seeds - failed} of {args.seeds} byte-equal", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
