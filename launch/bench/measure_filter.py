"""Measures `datagen filter`: time and memory for CC3M's size, captions a second, agreement of the rules with spaCy.

    python launch/bench/measure_filter.py [--rows=3300000] [--folder=/tmp] [--spacy-model=NAME] [--captions=FILE]

Writes ROWS synthetic captions as a TSV like CC3M's, whose nouns follow Zipf's law, and runs the verb in a process of
its own: first without cached noun phrases, then with them and another cap. 3.3 million rows need 1.5 GB of disk, which
are freed at the end. --captions: real captions, JSON Lines of {"image", "caption"}; prints captions a second of the
rules, and with --spacy-model those of spaCy and the agreement of both, by key.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

NOUNS, ADJECTIVES = 60_000, "red blue old young large small wooden happy white black".split()
SYLLABLES = [a + b for a in "bdfgklmnprtv" for b in "aeiou"]


def write_captions(path: Path, rows: int) -> None:
    """Three nouns a caption, two of them with an adjective."""
    import numpy as np

    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, NOUNS + 1)
    nouns = rng.choice(NOUNS, (rows, 3), p=shares / shares.sum())
    adjectives = rng.integers(len(ADJECTIVES), size=(rows, 2))
    names = ["".join(SYLLABLES[i // 60**k % 60] for k in range(3)) + "x" for i in range(NOUNS)]
    with open(path, "w", encoding="utf-8") as file:
        for i, ((a, b, c), (x, y)) in enumerate(zip(nouns.tolist(), adjectives.tolist(), strict=True)):
            text = f"a {ADJECTIVES[x]} {names[a]} beside the {names[b]} and a {ADJECTIVES[y]} {names[c]}"
            file.write(f"{text}\thttp://example.com/images/{i * 7919}/photo_{i}.jpg\n")


def measure(name: str, *arguments: object) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "llava_jax", "datagen", "filter", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"{name}: {seconds:.1f} s ({cpu:.1f} s of CPU), peak {usage.ru_maxrss / 1e6:.2f} GB")
    print(output)


def seconds_of(work: Callable) -> tuple[float, list]:
    """CPU time of all threads, and the result."""
    start = time.process_time()
    result = list(work())
    return time.process_time() - start, result


def compare(path: Path, spacy_model: str | None) -> None:
    from llava_jax.datagen.noun_phrases import KEYS, noun_phrases

    captions = [json.loads(line)["caption"] for line in path.read_text(encoding="utf-8").splitlines()]
    list(noun_phrases(captions[:1], spacy_model))  # loads the model
    seconds, by_rules = seconds_of(lambda: noun_phrases(captions))
    print(f"rules: {len(captions) / seconds:,.0f} captions a second and core")
    if spacy_model is None:
        return
    seconds, by_spacy = seconds_of(lambda: noun_phrases(captions, spacy_model))
    print(f"spaCy, {spacy_model}: {len(captions) / seconds:,.0f} captions a second and core")
    for key in KEYS:
        common = counts = other_counts = 0
        for phrases, other_phrases in zip(by_rules, by_spacy, strict=True):
            # spaCy's chunks contain pronouns, which have no head.
            ours, theirs = [Counter(getattr(p, key) for p in ps if p.head) for ps in (phrases, other_phrases)]
            common, counts = common + (ours & theirs).total(), counts + ours.total()
            other_counts += theirs.total()
        print(f"rules and spaCy, {key}: precision {common / counts:.1%}, recall {common / other_counts:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_300_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--spacy-model")
    parser.add_argument("--captions", type=Path)
    options = parser.parse_args()
    if options.captions:
        compare(options.captions, options.spacy_model)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.captions:
            model = ["--spacy-model", options.spacy_model] if options.spacy_model else []
            measure(f"{options.captions}", options.captions, folder / "real.jsonl", *model)
        if options.rows:
            path, cache = folder / "captions.tsv", ["--phrases", folder / "phrases"]
            write_captions(path, options.rows)
            measure("first run", path, folder / "first.jsonl", *cache)
            measure("second run, with cached phrases", path, folder / "second.jsonl", "--cap", 50, *cache)


if __name__ == "__main__":
    main()
