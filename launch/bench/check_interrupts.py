"""Sends SIGINT, SIGHUP and SIGTERM, once or twice, to verbs at random moments, and checks what they leave.

    python launch/bench/check_interrupts.py --points 20 [--each] [--verbs train,predict] [--seed 0] [--folder=DIR]

Each trial starts a verb in a new folder and signals it at a random moment of its run. It must end with 128 plus the
number of the signal (or 0 if it was done), print no traceback and leave no worker process. The same command is then run
again: what it writes must be byte-equal to an undisturbed run, unless the second signal left partial files, which the
verb must name. After two signals it must end within --at-once seconds. Prints a line per trial and a table; exit code 1
if a trial failed.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("SIGINT", "SIGHUP", "SIGTERM")
GAP = 0.4  # seconds between two signals; less counts as one
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1",
}  # fmt: skip
# Starts a program with the usual reactions to signals. Those in the background of a script ignore SIGINT.
WITH_SIGNALS = (
    "import os, sys; from signal import *; signal(SIGINT, SIG_DFL); signal(SIGHUP, SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def make_inputs(folder: Path) -> None:
    """Writes a model, ScienceQA problems and image rows that the verbs read."""
    from PIL import Image

    from tests.fixtures import scienceqa

    scienceqa.write_model(folder / "model")
    scienceqa.write_problems(folder / "problems")
    (folder / "images").mkdir()
    rows = []
    for i in range(400):
        Image.effect_noise((400, 300), 50 + i % 50).convert("RGB").save(folder / "images" / f"{i}.jpg")
        talk = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": f"number {i}"}]
        rows.append({"id": str(i), "image": f"{i}.jpg", "conversations": talk})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "questions.txt").write_text("what color is it ?\nis it red ?\nwhy ?\n", encoding="utf-8")


def commands(inputs: Path) -> dict[str, tuple[list[str], str | None]]:
    """Verb -> (arguments after `python -m llava_jax`, file for standard input). `out` is what it writes."""
    model, images = str(inputs / "model"), str(inputs / "images")
    config = f"--config={ROOT / 'tests/train/resume_config.py'}"
    predict = ["eval", "scienceqa", "predict", model, "--problems", str(inputs / "problems"), "--out", "out"]
    plan = ["plan", "--topology=v5e:1x1", f"--config={ROOT / 'configs/quickstart.py'}", "--json=out", "--tries=0"]
    check = ["data", "check", str(inputs / "rows.json"), images, "--report-folder", "out", "--workers", "2"]
    build = ["data", "build", str(inputs / "rows.json"), "out", "--images", images, "--shard-rows", "50"]
    chat = ["chat", model, "--max-new-tokens", "64", "--dtype", "float32"]
    return {
        "train": (["train", config, "--workdir=out"], None),
        "predict": ([*predict, "--missing-images", "text", "--batch", "4", "--max-new-tokens", "16"], None),
        "build": (build, None),
        "check": (check, None),
        "convert": (["convert", model, "out", "--to", "hf", "--verify"], None),
        "chat": (chat, str(inputs / "questions.txt")),
        "plan": (plan, None),
    }


def start(arguments: list[str], stdin: str | None, folder: Path, compiled: Path) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", WITH_SIGNALS, "-m", "llava_jax", *arguments]
    with (
        open(stdin or os.devnull, "rb") as source,
        open(folder / "log", "wb") as log,
        open(folder / "err", "wb") as err,
    ):
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | ENVIRONMENT | cache, stdin=source, stdout=log, stderr=err,
            start_new_session=True,
        )  # fmt: skip


def result(verb: str, folder: Path) -> dict[str, str]:
    """SHA-256 by name of everything that must be equal after an interrupt."""
    out = folder / "out"
    if verb == "train":
        spec = importlib.util.spec_from_file_location("check_resume", Path(__file__).with_name("check_resume.py"))
        check_resume = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(check_resume)
        return check_resume.contents(out)
    if verb == "chat":
        return {"answers": hashlib.sha256((folder / "log").read_bytes()).hexdigest()}
    files = sorted(p for p in out.rglob("*") if p.is_file()) if out.is_dir() else sorted(folder.glob("out*"))
    if verb == "plan":  # a further run appends the same result
        return {"fits": str({json.loads(line)["fits"] for line in out.read_text(encoding="utf-8").splitlines()})}
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def left_processes(group: int) -> list[str]:
    """Command lines of the session that still run."""
    listing = subprocess.run(["ps", "-s", str(group), "-o", "stat=,args="], capture_output=True, encoding="utf-8")
    return [line for line in listing.stdout.splitlines() if line.strip() and not line.startswith("Z")]


def trial(verb: str, name: str, count: int, delay: float, expected: dict, folder: Path, args) -> tuple[str, str]:
    """(what happened, the fault or "")."""
    arguments, stdin = commands(args.folder / "inputs")[verb]
    process = start(arguments, stdin, folder, args.folder / "compiled" if args.cache else folder / "compiled")
    time.sleep(delay)
    number, last = getattr(signal, name), ""
    for i in range(count):
        if i:
            time.sleep(GAP)
        process.send_signal(number)
    began = time.monotonic()
    code = process.wait(args.patience)
    seconds = time.monotonic() - began
    log, err = ((folder / n).read_text(encoding="utf-8", errors="replace") for n in ("log", "err"))
    last = (err.strip() or log.strip() or "nothing printed").splitlines()[-1][:90]
    line = f"exit code {code}, {seconds:.1f} s: {last}"
    time.sleep(0.3)
    if code not in (128 + number, -number, 0):  # -number: before the first line of ours, or while Python exits
        return line, f"exit code {code}"
    if any(mark in log + err for mark in ("Traceback", "Exception ignored", "Fatal Python", "terminate called")):
        return line, "traceback"
    if left := left_processes(process.pid):
        return line, f"still runs: {left[0][:80]}"
    if count == 2 and code and seconds > args.at_once:
        return line, "not at once"
    if verb == "train" and any((folder / "out" / "checkpoints").glob("[0-9]*[0-9]")):
        check = start(["checkpoints", "verify", "out"], None, folder, folder)
        if check.wait(args.patience):
            return line, f"a checkpoint is damaged: {(folder / 'log').read_text(encoding='utf-8')[-200:]}"
    partial = [p.name for p in folder.glob("out*.partial")]
    if partial and count == 1:
        return line, f"{partial[0]} is left"
    again = start(arguments, stdin, folder, args.folder / "compiled")
    code, err = again.wait(args.patience), (folder / "err").read_text(encoding="utf-8")
    if code and partial and "remove it first" in err:
        return f"{line}; the same command names {partial[0]}", ""
    if verb == "convert" and code and "exists already" in err:  # it was done before the signal
        code = 0
    if code:
        return line, f"the same command ends with {code}: {err[-200:]}"
    now = result(verb, folder)
    differing = sorted(key for key in expected.keys() | now.keys() if expected.get(key) != now.get(key))
    return line, f"{differing[0]} differs" if differing else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="random moments; the kinds of signals take turns")
    parser.add_argument("--each", action="store_true", help="--points moments for every kind of signals")
    parser.add_argument("--verbs", default="train,predict,build,check,convert,chat,plan")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--counts", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=float, default=2.0, help="seconds after the second signal")
    parser.add_argument("--patience", type=float, default=300, help="timeout of a process, seconds")
    parser.add_argument("--no-cache", dest="cache", action="store_false", help="compiles in every trial")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    args = parser.parse_args()
    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = (args.folder or Path(temporary)).absolute()
        if not (args.folder / "inputs").exists():
            (args.folder / "inputs").mkdir(parents=True)
            make_inputs(args.folder / "inputs")
        rng = random.Random(args.seed)
        for verb in args.verbs.split(","):
            arguments, stdin = commands(args.folder / "inputs")[verb]
            shutil.rmtree(args.folder / verb, ignore_errors=True)
            for attempt in ("first", "reference"):  # the first fills the cache of compiled programs
                began = time.monotonic()
                code = start(arguments, stdin, args.folder / verb / attempt, args.folder / "compiled").wait()
                length = time.monotonic() - began
                if code:
                    sys.exit(f"{verb} ended with exit code {code}; see {args.folder / verb / attempt / 'err'}")
            expected = result(verb, args.folder / verb / "reference")
            print(f"{verb}: {length:.1f} s undisturbed, {len(expected)} results", flush=True)
            kinds = [(name, int(count)) for name in args.signals.split(",") for count in args.counts.split(",")]
            trials = kinds * args.points if args.each else [kinds[i % len(kinds)] for i in range(args.points)]
            for number, (name, count) in enumerate(trials):
                delay = rng.uniform(0.1, length)
                folder = args.folder / verb / f"{number}-{name}-{count}"
                line, fault = trial(verb, name, count, delay, expected, folder, args)
                table[verb, "failed" if fault else "passed"] += 1
                verdict = f"FAILED, {fault}" if fault else "ok"
                print(f"  {name} x{count} at {delay:5.1f} s: {line}: {verdict}", flush=True)
                if not fault:
                    shutil.rmtree(folder)
    for verb in args.verbs.split(","):
        print(f"{verb:8} {table[verb, 'passed']:4} passed, {table[verb, 'failed']:3} failed", flush=True)
    return int(any(count for (_, kind), count in table.items() if kind == "failed"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
