"""Measures time and memory to open a training JSON of LLaVA-1.5's size.

    python launch/bench/open_big_json.py [ROWS] [FOLDER]

Writes ROWS (default 665,298) rows, 1.6 kB each on average, to FOLDER (default: a temporary one), and opens them twice
in separate processes: without an index, and with the index that the first one wrote. Then makes a held-out split and
reads rows in random order.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "the a red bus stands beside two small trees while people walk under an old bridge at a café 漢 tables".split()


def write(path: Path, rows: int) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(10, 90))) for _ in range(500)]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            turns = []
            for k in range(rng.randrange(1, 6)):
                question = rng.choice(texts)
                turns += [{"from": "human", "value": question if k else f"<image>\n{question}"}]
                turns += [{"from": "gpt", "value": rng.choice(texts)}]
            row = {"id": f"{i:012d}", "image": f"coco/train2017/{i:012d}.jpg", "conversations": turns}
            file.write(("," if i else "[") + json.dumps(row, ensure_ascii=False))
        file.write("]")


def measure(path: Path) -> None:
    """Opens, splits and reads the file, and prints the measurements."""
    from llava_jax.data.sources.combine import train_eval_split
    from llava_jax.data.sources.llava_json import LlavaJson

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    source = LlavaJson(path, path.parent)
    opened = time.perf_counter()
    train, held_out = train_eval_split(source, 0.01, 64)
    split = time.perf_counter()
    indices = random.Random(1).sample(range(len(train)), min(2000, len(train)))
    reading_start = time.perf_counter()
    for i in indices:
        train[i]
    row_seconds = (time.perf_counter() - reading_start) / len(indices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(source):,} rows opened in {opened - start:.2f} s, {len(held_out):,} held out in {split - opened:.2f} s, "
        f"a row read in {row_seconds * 1e6:.0f} us; peak RSS {peak / 1e6:.2f} GB "
        f"({imported / 1e6:.2f} GB after the imports)"
    )


def main(rows: int, folder: Path) -> None:
    path = folder / "big.json"
    write(path, rows)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")
    for turn in ("without an index", "with the index"):
        print(f"{turn}: ", end="", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", str(path)], check=True)
    print(f"the index: {os.path.getsize(f'{path}.index.npz') / 1e6:.1f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(int((sys.argv[1:] or ["665298"])[0]), Path((sys.argv[2:] or [temporary])[0]))
