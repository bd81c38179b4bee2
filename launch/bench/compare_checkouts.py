"""Compares the results of two checkouts of this project: python launch/bench/compare_checkouts.py OLD NEW [--data=DIR]

Runs each verb with the code of OLD and of NEW in separate processes on one machine, and compares their files: byte by
byte for data files, array by array for Orbax checkpoints, and number by number for `plan`, except times. Prints a line
per comparison; exit code 1 if anything differs.

OLD and NEW are folders of checkouts. DIR holds `captioned_images`, `scienceqa` and `published`; without it only verbs
that need no data are compared. `--only=train,convert` selects; `--steps=40` is the length of each quickstart stage.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SECONDS = ("time", "seconds", "compile", "wall")  # keys of times in a plan's record


def call(checkout: Path, folder: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """Runs `python -m ARGUMENTS` with the code of `checkout`, in `folder`; returns its standard output."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    if done.returncode not in allowed:
        sys.exit(f"{checkout}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def digests(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder` that matches."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report(name: str, old, new) -> bool:
    """Prints whether two equal-keyed dicts (or two values) agree, and the first differences."""
    if old == new:
        count = f"{len(old)} equal" if isinstance(old, dict) else "equal"
        print(f"{name}: {count}", flush=True)
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        print(f"{name}: DIFFERENT in {len(keys)}: {', '.join(map(str, keys[:8]))}", flush=True)
    else:
        print(f"{name}: DIFFERENT", flush=True)
    return False


def train(sides: dict[Path, Path], steps: int) -> bool:
    """The quickstart, cut to `steps` a stage: metrics, accuracy, sample answers, and the newest checkpoint."""
    for checkout, folder in sides.items():
        stages = [f"--config.stages.{name}.steps={steps}" for name in ("stage1", "stage2")]
        config = checkout / "configs" / "quickstart.py"
        call(checkout, folder, "llava_jax.main", f"--config={config}", "--workdir=run", *stages)
    old, new = (folder / "run" for folder in sides.values())
    same = report("quickstart metrics.jsonl", *((run / "metrics.jsonl").read_bytes() for run in (old, new)))
    same &= report("quickstart accuracy", *(digests(run, "accuracy-*.json") for run in (old, new)))
    same &= report("quickstart answers and images", *(answers(run) for run in (old, new)))
    return same & report("quickstart checkpoint, array by array", *(arrays(run / "checkpoints") for run in (old, new)))


def answers(run: Path) -> dict[str, str]:
    """Digests of the sample answers and images, without the HTML pages, whose layout may differ."""
    return {name: value for name, value in digests(run / "samples").items() if not name.endswith(".html")}


def arrays(checkpoints: Path) -> dict[str, str]:
    """Path in the latest checkpoint -> digest of dtype, shape and bits."""
    import orbax.checkpoint as ocp

    latest = max((path for path in checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    folder = latest / "state" if (latest / "state").is_dir() else latest / "default"
    restored = ocp.PyTreeCheckpointer().restore(folder)
    digests_by_path = {}

    def visit(path: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{path}/{key}", inner)
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                visit(f"{path}/{index}", inner)
        elif value is not None:
            array = np.asarray(value)
            text = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
            digests_by_path[path] = hashlib.sha256(text).hexdigest()

    visit("", restored)
    assert digests_by_path, f"no arrays in {folder}"
    return digests_by_path


def convert(sides: dict[Path, Path]) -> bool:
    """Converts the model of `train` to Hugging Face's format, the original's and Orbax."""
    same = True
    for kind in ("hf", "llava", "orbax"):
        for checkout, folder in sides.items():
            call(checkout, folder, "llava_jax", "convert", "run", kind, "--to", kind)
    first, second = sides.values()
    for kind in ("hf", "llava"):
        same &= report(f"convert --to {kind}", digests(first / kind), digests(second / kind))
    return same & report("convert --to orbax", *(arrays(side / "orbax" / "checkpoints") for side in (first, second)))


def data(sides: dict[Path, Path], root: Path) -> bool:
    """`data captions`, `build`, `check` and `stats` on captioned images."""
    captions, images = root / "captioned_images" / "captions.jsonl", root / "captioned_images" / "images"
    for checkout, folder in sides.items():
        call(checkout, folder, "llava_jax", "data", "captions", str(captions), "chat.json", "--images", str(images))
        os.utime(folder / "chat.json", ns=(0, 0))  # the manifest of a build records it
        call(checkout, folder, "llava_jax", "data", "build", "chat.json", "shards", "--images", str(images))
        check = ["data", "check", "chat.json", str(images), "--tokenizer", "tiny", "--report-folder", "report"]
        call(checkout, folder, "llava_jax", *check, allowed=(0, 1))
    first, second = sides.values()
    same = report("data captions", *((side / "chat.json").read_bytes() for side in (first, second)))
    same &= report("data build", digests(first / "shards"), digests(second / "shards"))
    return same & report(
        "data check", *(json.loads((s / "report/report.json").read_text(encoding="utf-8")) for s in (first, second))
    )


def scienceqa(sides: dict[Path, Path], root: Path) -> bool:
    """`eval scienceqa score` of the published answers, and `data scienceqa`."""
    published, problems = root / "published" / "test_sqa_llava_13b_v0.json", root / "scienceqa"
    for checkout, folder in sides.items():
        score = ["eval", "scienceqa", "score", str(published), "--problems", str(problems)]
        (folder / "scores").mkdir(parents=True)
        files = ["--json", "scores/score.json", "--result", "scores/result.json", "--analysis", "scores/analysis.json"]
        call(checkout, folder, "llava_jax", *score, *files, allowed=(0, 1))
        call(checkout, folder, "llava_jax", "data", "scienceqa", str(problems), "train.json", "--split", "train")
    first, second = sides.values()
    same = report("data scienceqa", *((side / "train.json").read_bytes() for side in (first, second)))
    return same & report("eval scienceqa score", digests(first / "scores"), digests(second / "scores"))


def plan(sides: dict[Path, Path]) -> bool:
    """`plan` of the quickstart for one slice: all numbers except times."""
    records = []
    for checkout, folder in sides.items():
        config = f"--config={checkout}/configs/quickstart.py"
        bf16 = ["--config.model.dtype=bfloat16", "--config.model.feature_dtype=bfloat16"]
        call(checkout, folder, "llava_jax", "plan", config, *bf16, "--topology=v5e:2x2", "--json=plan.json",
             allowed=(0, 1))  # fmt: skip
        lines = (folder / "plan.json").read_text(encoding="utf-8").splitlines()
        records.append({f"{n}{path}": x for n, line in enumerate(lines) for path, x in numbers(json.loads(line))})
    return report("plan", *records)


def numbers(value, path: str = ""):
    """Yields (path, number) of everything in a record except times."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not any(word in key for word in SECONDS):
                yield from numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", type=Path, help="folder with captioned_images, scienceqa and published")
    parser.add_argument("--only", default="train,convert,data,scienceqa,plan")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each quickstart stage")
    args = parser.parse_args()
    chosen = args.only.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        # Equally long paths that do not name the side, so that output that quotes them is equal.
        sides = {args.old.resolve(): Path(scratch, "a", "out"), args.new.resolve(): Path(scratch, "b", "out")}
        same = True
        if "train" in chosen:
            same &= train(sides, args.steps)
        if "convert" in chosen:
            same &= convert(sides)
        if "data" in chosen and args.data:
            same &= data(sides, args.data.resolve())
        if "scienceqa" in chosen and args.data:
            same &= scienceqa(sides, args.data.resolve())
        if "plan" in chosen:
            same &= plan(sides)
    print("all equal" if same else "DIFFERENT")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
