"""Compares the input pipeline, in samples per second and core, with a torch DataLoader that does what LLaVA's does.

    python launch/bench/input_pipeline.py CHAT_JSON IMAGES TOKENIZER [--aspect pad] [--size 336] [--workers 2]

Both read the same files, alternately, with equally many worker processes. Ours is the pipeline of a training stage. The
other opens the image, converts it, pads it to a square with the processor's mean color (or leaves it to the processor's
crop), runs CLIP's image processor, and tokenizes a conversation once as a whole and once per turn for the target mask,
as the original's `preprocess_v1` does. Both use the same tokenizer (the original's is slower). It produces normalized
float32 pixels, like the original; ours are uint8 and are normalized on the device. Prints samples per second of wall
time and of processor time with warm workers, medians over the rounds, and the ratios. Needs the `test` extra, Linux,
rows with one image each, and an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from llava_jax.data.pipeline import make_batches
from llava_jax.data.rows import RowFormat, Rows
from llava_jax.data.sources.open_source import open_source
from llava_jax.text.tokenizer import load_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BATCH = 32
WARM = 8  # batches of warm-up
LEFT = 8  # last batches, not timed: workers already end


class Theirs(torch.utils.data.Dataset):
    """Preprocesses a sample as the original does."""

    def __init__(self, path: Path, images: Path, tokenizer, aspect: str, size: int):
        self.rows, self.images, self.aspect = json.loads(path.read_text(encoding="utf-8")), images, aspect
        self.bos_id = tokenizer.bos_id
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
        self.processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        image = Image.open(self.images / row["image"], formats=("JPEG", "PNG")).convert("RGB")
        if self.aspect == "pad" and image.width != image.height:
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in self.processor.image_mean))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        pixels = self.processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
        rounds = []
        for human, answer in zip(row["conversations"][::2], row["conversations"][1::2], strict=True):
            rounds.append((f"USER: {human['value']} ASSISTANT: ", f"{answer['value']}</s>"))
        ids = self._ids(SYSTEM + " " + "".join(a + b for a, b in rounds))
        labels, at = list(ids), 1
        for question, answer in rounds:
            length, masked = len(self._ids(question + answer)), len(self._ids(question)) - 2
            labels[at : at + masked] = [-100] * masked
            at += length
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "image": pixels}

    def _ids(self, text: str) -> list[int]:
        pieces = [self.tokenizer(piece).input_ids for piece in text.split("<image>")]
        ids = [self.bos_id, *pieces[0]]
        for piece in pieces[1:]:
            ids += [-200, *piece]
        return ids


def collate(samples: list[dict]) -> dict:
    def pad(name: str, value: int):
        return torch.nn.utils.rnn.pad_sequence([s[name] for s in samples], batch_first=True, padding_value=value)

    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", -100),
        "images": torch.stack([s["image"] for s in samples]),
    }


def theirs(dataset: Theirs, workers: int, seed: int) -> tuple[float, float]:
    order = torch.utils.data.RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, sampler=order, num_workers=workers, collate_fn=collate, prefetch_factor=2
    )
    return measure(iter(loader), len(dataset) // BATCH)


def ours(rows: Rows, workers: int, seed: int) -> tuple[float, float]:
    batches = make_batches(
        range(len(rows)), rows.row, batch_size=BATCH, seed=seed, shuffle=True, epochs=2, process_index=0,
        process_count=1, threads=1, prefetch=2, workers=workers,
    )  # fmt: skip
    rates = measure(batches, len(rows) // BATCH)
    batches.close()
    return rates


def measure(batches, count: int) -> tuple[float, float]:
    """Samples per second of wall time and of processor time, except the `WARM` first and `LEFT` last batches."""
    for _ in range(WARM):
        next(batches)
    before, start = processor_seconds(), time.perf_counter()
    for _ in range(count - WARM - LEFT):
        next(batches)
    wall, processor = time.perf_counter() - start, processor_seconds() - before
    for _ in range(LEFT):
        next(batches)
    samples = BATCH * (count - WARM - LEFT)
    return samples / wall, samples / processor


def processor_seconds() -> float:
    """User and system time of this process and its running children."""
    pid_self = os.getpid()
    children = Path(f"/proc/{pid_self}/task/{pid_self}/children").read_text(encoding="utf-8").split()
    ticks = 0
    for pid in (pid_self, *children):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--aspect", choices=("crop", "pad"), default="pad")
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.tokenizer)
    features = (args.size // 14) ** 2
    form = RowFormat(tokenizer, "vicuna_v1", 2048, 1, features, args.size, args.aspect, "truncate")
    rows = Rows(open_source(args.json, args.images), form)
    if len(rows) < BATCH * (WARM + LEFT + 1):
        parser.error(f"{args.json} has {len(rows)} samples; the measurement needs {BATCH * (WARM + LEFT + 1)}")
    dataset = Theirs(args.json, args.images, tokenizer, args.aspect, args.size)
    rates: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for seed in range(args.rounds + 1):
        our_rates, their_rates = ours(rows, args.workers, seed), theirs(dataset, args.workers, seed)
        if seed:  # the first round only fills the page cache
            rates["ours"].append(our_rates)
            rates["theirs"].append(their_rates)
    medians = {name: np.array([statistics.median(x) for x in zip(*v, strict=True)]) for name, v in rates.items()}
    print(
        f"{len(rows)} samples, {args.aspect} to {args.size} px, {args.workers} worker processes, {os.cpu_count()} cores"
    )
    for name, (wall, core) in medians.items():
        print(f"{name:7}{wall:8.1f} samples/s{core:8.1f} samples per second of one core")
    wall, core = medians["ours"] / medians["theirs"]
    print(f"ours / theirs: {wall:.2f}x samples/s, {core:.2f}x samples per second of one core")


if __name__ == "__main__":
    main()
