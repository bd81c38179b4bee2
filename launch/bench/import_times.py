"""Measures the time of `import llava_jax` and of each verb's --help, and whether they import jax:

    python launch/bench/import_times.py [--repeats=5]

Times are medians over `--repeats` new Python processes. For `import llava_jax` the time of `import numpy` is excluded.
Exit code 1 if jax is imported.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERBS = (
    "train", "chat", "checkpoints", "ckpt", "convert", "plan",
    "data check", "data show", "data stats", "data build", "data captions", "data scienceqa",
    "datagen instruct", "datagen scenes",
    "eval scienceqa predict", "eval scienceqa score", "eval scienceqa ensemble", "eval scienceqa ask",
    "eval scienceqa judge",
)  # fmt: skip
COMMANDS = {
    "llava_jax.main": ["-m", "llava_jax.main", "--help"],
    "(the list of verbs)": ["-m", "llava_jax", "--help"],
    **{verb: ["-m", "llava_jax", *verb.split(), "--help"] for verb in VERBS},
}
IMPORT = "import time, numpy; start = time.perf_counter(); import llava_jax; print(time.perf_counter() - start)"


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, encoding="utf-8", check=True
    )


def seconds(arguments: list[str], repeats: int) -> float:
    """The median wall-clock time of a Python process with these arguments."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        python(*arguments)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def imports_jax(arguments: list[str]) -> bool:
    """Whether a Python process with these arguments imports jax, by its -X importtime."""
    return re.search(r"\| +jax$", python("-X", "importtime", *arguments).stderr, re.MULTILINE) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    beyond_numpy = statistics.median(float(python("-c", IMPORT).stdout) for _ in range(repeats))
    with_jax = [imports_jax(["-c", "import llava_jax"])]
    print(f"{'import llava_jax, beyond numpy':34}{1000 * beyond_numpy:7.1f} ms{'  imports jax' * with_jax[0]}")
    for name, arguments in COMMANDS.items():
        with_jax.append(imports_jax(arguments))
        print(f"{name + ' --help':34}{seconds(arguments, repeats):7.2f} s {'  imports jax' * with_jax[-1]}", flush=True)
    return int(any(with_jax))


if __name__ == "__main__":
    sys.exit(main())
