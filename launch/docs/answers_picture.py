"""Makes the picture of the README: the answers page of a quickstart run, rendered by a headless Chromium.

    python launch/docs/answers_picture.py                                  # first trains the quickstart, for minutes
    python launch/docs/answers_picture.py --workdir=workdir/quickstart     # uses an existing run

Writes docs/images/answers.png (the top of the newest page of the last stage) and docs/images/scene.png, the scene that
the README's `chat` command asks about. Needs Chromium (Debian: apt-get install chromium), or --browser=COMMAND.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from llava_jax.data.sources.scene_world import caption, draw_scene, render_scene

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 300_000
SCENE_INDEX = 7  # a held-out scene with several objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a finished quickstart run")
    parser.add_argument("--browser", default="chromium", help="a Chromium or Chrome")
    parser.add_argument("--width", type=int, default=1280, help="of the window, pixels")
    parser.add_argument("--height", type=int, default=1340, help="of the window, pixels")
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    write_scene(IMAGES / "scene.png")
    with tempfile.TemporaryDirectory() as folder:
        workdir = args.workdir or train_quickstart(Path(folder) / "quickstart")
        screenshot(newest_page(workdir), IMAGES / "answers.png", args.browser, args.width, args.height)


def train_quickstart(workdir: Path) -> Path:
    command = ["train", f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}"]
    subprocess.run([sys.executable, "-m", "llava_jax", *command], check=True, cwd=ROOT)
    return workdir


def newest_page(workdir: Path) -> Path:
    """The answers page of the last evaluation."""
    pages = sorted(workdir.glob("samples/*/answers.html"), key=lambda page: page.stat().st_mtime)
    if not pages:
        sys.exit(f"error: {workdir} has no samples/*/answers.html; give the workdir of a finished run")
    return pages[-1]


def screenshot(page: Path, out: Path, browser: str, width: int, height: int) -> None:
    """Writes the top of `page` as a PNG with a palette of 256 colors, below MAX_BYTES."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        flags += [f"--window-size={width},{height}", f"--screenshot={raw}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(raw, formats=("PNG",)) as image:
            image.convert("RGB").quantize(256).save(out, optimize=True)
    size = out.stat().st_size
    if size >= MAX_BYTES:
        sys.exit(f"error: {out} has {size:,} bytes, more than {MAX_BYTES:,}; make the window smaller")
    print(f"{out}: {page}, {size:,} bytes")


def write_scene(out: Path) -> None:
    scene = draw_scene(seed=0, index=SCENE_INDEX, held_out=True)
    render_scene(scene, 48).save(out)
    print(f"{out}: {caption(scene, random.Random(0))}")


if __name__ == "__main__":
    main()
