"""Closes the loop of `datagen`: a scripted teacher writes rows about scenes, the quickstart's towers learn from them.

    python launch/bench/measure_datagen_loop.py [--steps 800] [--images 4000] [--ablations 3] [--folder=DIR]

The teacher is a local server that sees only what a chat model would: the captions and boxes in each request. It writes
a conversation, a detailed description and a question that needs reasoning about every image, without errors.
`datagen instruct` makes the rows, `data check` checks them, and the quickstart's second stage trains on them. The
accuracy is that of the quickstart's table: questions about held-out scenes, with the image, with a blank one, and by
chance. --ablations: then trains on conversations only, with descriptions, and with reasoning too, each for the same
number of steps and with that many seeds (the paper's table of ablations, arXiv 2304.08485, section 5.1).

Exit code 1 if the accuracy is below 90 % or that with a blank image is more than 10 points above chance.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "launch" / "local")]

import make_tiny_llava  # noqa: E402

import llava_jax  # noqa: E402
from llava_jax.data.sources import scene_world  # noqa: E402
from llava_jax.train.scene_exam import format_accuracy  # noqa: E402
from tests.fixtures.fake_llm_server import FakeServer  # noqa: E402
from tests.fixtures.fake_teacher import kind_of  # noqa: E402

SIDE = 48  # pixels, of an image of the tiny tower
LENGTH, LENGTHS = 256, (96, 128, 160)  # tokens of a row: the questions of descriptions use other words than the scenes
PHRASE = re.compile(r"a (\w+) (\w+) (\w+) at the ([\w ]+?)(?: ,| and|$)")
REASONING = ("relation", "reasoning")  # kinds of questions that a reasoning row has
ABLATIONS = {
    "conversation": ("conversation",),
    "+ detail": ("conversation", "detail"),
    "+ reasoning": ("conversation", "detail", "reasoning"),
}
ALL_KINDS = "+ reasoning"
LOWEST, BLANK_MARGIN = 90.0, 10.0  # percent, points


def scene_of(caption: str) -> scene_world.Scene:
    """What a caption tells of a scene, which is all but the exact position."""
    cells = {name: cell for cell, name in enumerate(scene_world.POSITIONS)}
    objects = [
        scene_world.Object(size, color, shape, cells[position], 0.0, 0.0)
        for size, color, shape, position in PHRASE.findall(caption)
    ]
    return scene_world.Scene(tuple(sorted(objects, key=lambda o: o.cell)), background=0)


def teach(call) -> None:
    """Answers one request."""
    caption = call.text.split("\n", 1)[0]
    scene, rng = scene_of(caption), random.Random(caption)
    kind = kind_of(call.body)
    if kind == "detail":
        call.reply(scene_world.description(scene))
        return
    questions = scene_world.questions(scene, rng)
    if kind == "reasoning":
        questions = [q for q in questions if q.kind in REASONING][:1]
    else:
        questions = [q for q in questions if q.kind not in REASONING]
    call.reply("\n===\n".join(f"Question:\n{q.text}\n===\nAnswer:\n{q.answer}" for q in questions))


def run(*arguments: str, **environment: str) -> None:
    """Runs a verb. Ends this program if it fails."""
    command = [sys.executable, "-m", "llava_jax", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8"
    )
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    print("\n".join(result.stdout.splitlines()[-3:]), flush=True)


def make_rows(folder: Path, images: int, names: Sequence[str]) -> None:
    """Writes scenes and, for some of ABLATIONS, rows."""
    run("datagen", "scenes", folder / "scenes", "--count", images, "--image-size", SIDE)
    with FakeServer(teach) as server:
        for name in names:
            kinds = ABLATIONS[name]
            shares = [f"--{kind}-rows={float(kind in kinds)}" for kind in ("conversation", "detail", "reasoning")]
            flags = ["--model", "scripted", "--base-url", server.url, "--input-price", 0, "--output-price", 0]
            flags += ["--max-cost", 1, "--concurrency", 16]
            run(
                *("datagen", "instruct", folder / "scenes" / "contexts.jsonl", folder / name, *shares, *flags),
                OPENAI_API_KEY="none",
            )
            server.calls.clear()


def train_projector(folder: Path) -> Path:
    """The quickstart's first stage."""
    file = folder / "projector.safetensors"
    flags = ["--config.run=('stage1',)", f"--config.stages.stage1.save.projector={file}"]
    run("train", "--config=configs/quickstart.py", f"--workdir={folder / 'stage1'}", *flags)
    return file


def train(folder: Path, rows: Path, projector: Path, name: str, steps: int, seed: int) -> dict:
    """The second stage on some rows -> the accuracy table."""
    workdir, stage = folder / f"run {name} {seed}", "--config.stages.stage2."
    flags = ["--config.run=('stage2',)", f"--config.load.projector={projector}", f"--config.seed={seed}"]
    flags += [f"{stage}data.source=files", f"{stage}data.path={rows / 'instruct.json'}"]
    flags += [f"{stage}data.image_folder={folder / 'scenes' / 'images'}", f"{stage}data.length={LENGTH}"]
    flags += [f"{stage}data.lengths={LENGTHS}", f"{stage}steps={steps}"]
    flags += [f"{stage}eval.before=False", f"{stage}eval.questions=0"]
    run("train", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags)
    return make_tiny_llava.measure(llava_jax.load(workdir), per_kind=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=800, help="of the second stage")
    parser.add_argument("--ablations", type=int, default=0, help="seeds")
    parser.add_argument("--ablation-steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = (args.folder or Path(temporary)).resolve(), time.perf_counter()
        make_rows(folder, args.images, list(ABLATIONS) if args.ablations else [ALL_KINDS])
        rows = folder / ALL_KINDS
        run(
            *("data", "check", rows / "instruct.json", folder / "scenes" / "images"),
            "--report-folder",
            folder / "report",
        )
        projector = train_projector(folder)
        table = train(folder, rows, projector, "all", args.steps, seed=0)
        print("\n".join(format_accuracy(table, None)), flush=True)
        print(f"{time.perf_counter() - start:.0f} s in all", flush=True)
        scores: dict[str, list[float]] = {}
        for seed in range(args.ablations):
            for name in ABLATIONS:
                result = train(folder, folder / name, projector, name, args.ablation_steps, seed)
                scores.setdefault(name, []).append(result["overall"]["image"])
                kinds = ", ".join(f"{kind} {row['image']:.0f}" for kind, row in result.items())
                print(f"seed {seed}, {name}: {kinds}", flush=True)
        for name, values in scores.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name:14} {statistics.mean(values):5.1f} % +- {spread:.1f} over {len(values)} seeds", flush=True)
    overall = table["overall"]
    sys.exit(int(overall["image"] < LOWEST or overall["blank"] > overall["chance"] + BLANK_MARGIN))


if __name__ == "__main__":
    main()
