"""Compares the speed of two checkouts: python launch/bench/compare_speed.py OLD NEW [--rounds=7] [--model=smollm2_135m]

Three processes, OLD, NEW and OLD again, compile the train step of `bench_step` and the prefill and decode of
`measure_generate`, each from its own checkout, and then take turns. A round is one turn of each, so that other load on
the machine affects all of them. The table has the medians over rounds of NEW / OLD and of OLD again / OLD, and the
range of the latter: a change is a regression if its median lies more than 3 % above that range.

Exits with 1 for a regression. OLD and NEW are folders of checkouts that have launch/bench/bench_step.py, or
launch/local/bench_step.py as older ones do. Needs `pip install -e '.[test]'`.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

TOLERANCE = 0.03
STEP = SimpleNamespace(remat="none", unroll=False)
ROWS, LENGTH, CALLS = 2, 128, 2  # of a train step; counted steps in a turn
NEW_TOKENS, PROMPT = 16, 256


def load_script(checkout: Path, name: str):
    """Imports a benchmark of a checkout by path."""
    paths = [checkout / "launch" / folder / f"{name}.py" for folder in ("bench", "local")]
    path = next(path for path in paths if path.exists())
    sys.path[:0] = [str(checkout), str(path.parent)]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_step(checkout: Path, folder: Path, model: str, dtype: str, stage: int):
    """Returns a function that runs a turn of train steps and gives its median seconds, by name."""
    bench = load_script(checkout, "bench_step")
    shapes = bench.shapes_of(model, dtype, STEP)
    if not (folder / "config.json").exists():
        bench.make_model(shapes).save_pretrained(folder)
    step = bench.OurStep(shapes, folder, stage, 1)
    step.set_batch(bench.make_batch(shapes, ROWS, LENGTH))
    step()  # compiles
    return lambda: {f"train step, stage {stage}": statistics.median(bench.turn(step, CALLS))}


def make_generate(checkout: Path, folder: Path, dtype: str, batch: int):
    """Returns a function that generates once and gives the seconds of prefill and decode, by name."""
    bench = load_script(checkout, "measure_generate")
    if not (folder / "config.json").exists():
        bench.make_theirs().save_pretrained(folder)
    model, view = bench.make_ours(folder, dtype)
    rows = bench.padded_rows(batch, dtype, None)
    inputs = bench.ours_batch(*bench.prompts(batch, PROMPT), rows)

    def run() -> dict[str, float]:
        prefill, decode, _ = bench.run_ours(model, view, inputs, rows, NEW_TOKENS)
        return {f"prefill, batch {batch}": prefill, f"decode, batch {batch}": decode}

    run()  # compiles
    return run


def serve(checkout: Path, folder: Path, case: list[str]) -> None:
    """A process of one side: builds the case, then runs a turn for every line of standard input."""
    kind, *rest = case
    if kind == "step":
        run = make_step(checkout, folder, rest[0], rest[1], int(rest[2]))
    else:
        run = make_generate(checkout, folder, rest[0], int(rest[1]))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def start(checkout: Path, folder: Path, case: list[str]) -> subprocess.Popen:
    """Starts one side and waits until it has compiled."""
    command = [sys.executable, __file__, str(checkout), str(folder), "--serve", *case]
    environment = os.environ | {"PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as bench_step sets it
    side = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    while (line := side.stdout.readline()) and line.strip() != "ready":
        pass
    if not line:
        sys.exit(f"error: {checkout}: {' '.join(case)} failed")
    return side


def turn(side: subprocess.Popen) -> dict[str, float]:
    side.stdin.write("\n")
    side.stdin.flush()
    return json.loads(side.stdout.readline())


def compare(old: Path, new: Path, case: list[str], rounds: int) -> bool:
    """Prints a line per measured part of a case; returns whether none is slower."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [start(checkout, Path(folder), case) for checkout in (old, new, old)]
        try:
            times = [[turn(side) for side in sides] for _ in range(rounds)]
        finally:
            for side in sides:
                side.stdin.close()
                side.wait()
    passed = True
    for part in times[0][0]:
        changes = [row[1][part] / row[0][part] for row in times]
        noise = [row[2][part] / row[0][part] for row in times]
        ratio, limit = statistics.median(changes), max(noise) + TOLERANCE
        passed &= ratio <= limit
        print(
            f"{case[1] if case[0] == 'generate' else case[2]:9} {part:20} | "
            f"{statistics.median(row[0][part] for row in times):8.3f} s | {ratio:6.3f} | "
            f"{statistics.median(noise):6.3f}  {min(noise):.3f} to {max(noise):.3f} | "
            f"{'ok' if ratio <= limit else 'SLOWER'}",
            flush=True,
        )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="smollm2_135m", choices=["tiny", "smollm2_135m"], help="of the train step")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.old, args.new, args.serve)
        return 0
    print(f"{args.rounds} rounds; medians of ratios\n")
    print("dtype     part                 | OLD        |  NEW / OLD | OLD again / OLD")
    cases = []
    for dtype in args.dtypes:
        cases += [["step", args.model, dtype, str(stage)] for stage in (1, 2)]
        cases += [["generate", dtype, str(batch)] for batch in (1, 8)]
    results = [compare(args.old.resolve(), args.new.resolve(), case, args.rounds) for case in cases]
    passed = all(results)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
