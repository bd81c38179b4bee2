"""Measures the slots of `serve` beside transformers: same random weights, same requests, two CPU threads.

    python launch/bench/measure_serving.py [--clients 1,4,16,64] [--rounds 1] [--dtype float32] [--slots 16]

The model is a LLaVA of SmolLM2-135M's shapes with a small CLIP tower. A request is one image and 64 words; its answer
has 16 to 256 tokens. Requests arrive at random (Poisson), and up to as many as there are clients are open at a time.
The other systems are transformers' `generate`, one request after the other and in static batches of 16; they do not
wait for arrivals. They alternate in each round. Prints output tokens per second, time to the first token, ratios, and
what our own times of a part and a step allow at best. Needs `pip install -e '.[test]'`.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import measure_generate as shared
import numpy as np
import torch
from transformers import GenerationConfig as TheirConfig

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.inference.engine import GenerationConfig, Prompt
from llava_jax.inference.prefix_cache import PrefixCache
from llava_jax.inference.slot_engine import SlotEngine
from llava_jax.inference.warm_up import warm_up
from llava_jax.runtime.mesh import make_mesh

TEXT, SHORTEST, LONGEST, STATIC, LENGTH = 64, 16, 256, 16, 512
REQUESTS = {1: 4, 4: 12, 16: 32, 64: 96}  # by number of clients


class Request:
    """One question."""

    def __init__(self, rng: random.Random, arrival: float):
        generator = np.random.default_rng(rng.randrange(1 << 30))
        features = (shared.SIZE // shared.PATCH) ** 2
        text = generator.integers(10, 49_000, TEXT)
        self.ids = np.concatenate([text[:4], np.full(features, shared.IMAGE_TOKEN), text[4:]])
        self.pixels = generator.standard_normal((3, shared.SIZE, shared.SIZE), dtype=np.float32)
        self.new, self.arrival = rng.randint(SHORTEST, LONGEST), arrival

    def prompt(self) -> Prompt:
        tokens = np.where(self.ids == shared.IMAGE_TOKEN, IMAGE_TOKEN_ID, self.ids).astype(np.int32)
        return Prompt(tokens, [np.ascontiguousarray(self.pixels.transpose(1, 2, 0))])


def make_requests(count: int, clients: int, seed: int) -> list[Request]:
    rng, clock, requests = random.Random(f"{seed} {clients}"), 0.0, []
    for _ in range(count):
        requests.append(Request(rng, clock))
        clock += rng.expovariate(clients)  # on average one second until all clients have asked
    return requests


def run_slots(engine: SlotEngine, requests: list[Request], clients: int) -> tuple[float, list[float]]:
    """(seconds until all are answered, seconds from each arrival to its first token)."""
    start, waiting, open_requests, first = time.perf_counter(), list(requests), {}, []
    while waiting or open_requests:
        now = time.perf_counter() - start
        while waiting and waiting[0].arrival <= now and engine.free_slots and len(open_requests) < clients:
            request = waiting.pop(0)
            slot = engine.open(request.prompt(), GenerationConfig((), max_new_tokens=request.new))
            open_requests[slot] = [request, 0]
        if not open_requests:
            time.sleep(0.001)
        for token in engine.advance():
            entry = open_requests[token.slot]
            entry[1] += 1
            if entry[1] == 1:
                first.append(time.perf_counter() - start - entry[0].arrival)
            if entry[1] == entry[0].new:
                engine.close(token.slot)
                del open_requests[token.slot]
    return time.perf_counter() - start, first


def run_theirs(model, requests: list[Request], rows: int) -> tuple[float, list[float]]:
    """In batches of `rows`, in order of arrival; all prompts have one length, so that nothing is padded."""
    start, first = time.perf_counter(), []

    def clock(ids, scores, **_):
        times.append(time.perf_counter() - start)
        return torch.zeros(len(ids), dtype=torch.bool)

    for i in range(0, len(requests), rows):
        batch, times = requests[i : i + rows], []
        ids = torch.tensor(np.stack([r.ids for r in batch]))
        pixels = torch.tensor(np.stack([r.pixels for r in batch])).to(model.dtype)
        new = max(r.new for r in batch)
        config = TheirConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
        with torch.inference_mode():
            model.generate(
                input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), generation_config=config,
                stopping_criteria=[clock],
            )  # fmt: skip
        first += [times[0]] * len(batch)
    return time.perf_counter() - start, first


def own_times(engine: SlotEngine) -> tuple[float, float]:
    """Median seconds of (reading one prompt alone, one step with all slots running)."""
    reads, steps = [], []
    for n in range(5):
        request = Request(random.Random(f"alone {n}"), 0)
        start = time.perf_counter()
        slot, tokens = engine.open(request.prompt(), GenerationConfig((), max_new_tokens=1)), []
        while not tokens:
            tokens = engine.advance()
        reads.append(time.perf_counter() - start)
        engine.close(slot)
    for _ in range(len(engine.conversations)):
        engine.open(Prompt([1, 2, 3]), GenerationConfig((), max_new_tokens=80))
    while engine.is_busy:
        start = time.perf_counter()
        for token in engine.advance():
            if len(engine.conversations[token.slot].answer) == 80:
                engine.close(token.slot)
        steps.append(time.perf_counter() - start)
    return statistics.median(reads), statistics.median(steps[20:60])


def slowest_gap(engine: SlotEngine) -> tuple[float, float]:
    """Median seconds between two tokens of a running answer: (alone, while long prompts are read)."""
    alone, crowded = [], []
    for gaps, others in ((alone, 0), (crowded, 3)):
        slot = engine.open(Prompt([1, 2, 3]), GenerationConfig((), max_new_tokens=40))
        rng = np.random.default_rng(len(gaps))
        for _ in range(others):
            engine.open(
                Prompt(rng.integers(10, 49_000, LENGTH - 20).astype(np.int32)), GenerationConfig((), max_new_tokens=1)
            )
        times = []
        while engine.conversations[slot]:
            for token in engine.advance():
                if token.slot != slot or len(times) == 30:
                    engine.close(token.slot)
                if token.slot == slot:
                    times.append(time.perf_counter())
        for other, conversation in enumerate(engine.conversations):
            if conversation:
                engine.close(other)
        gaps += np.diff(times).tolist()
    return statistics.median(alone[5:]), statistics.median(crowded[5:25])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-one-by-one", action="store_true", help="the slowest of the other systems")
    args = parser.parse_args()
    torch.set_num_threads(shared.THREADS)
    theirs = shared.make_theirs()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, view = shared.make_ours(Path(folder), args.dtype)
    theirs = theirs.to(getattr(torch, args.dtype))
    engine = SlotEngine(model, view, make_mesh(1, 1, 1), slots=args.slots, length=LENGTH, prefixes=PrefixCache(0))
    warm_up(engine)
    prompt_seconds, step_seconds = own_times(engine)
    print(f"a prompt takes {prompt_seconds:.3f} s, a step of {args.slots} slots {step_seconds:.3f} s", flush=True)
    alone, crowded = slowest_gap(engine)
    print(
        f"between two tokens {alone:.3f} s alone, {crowded:.3f} s beside a long prompt: {crowded / alone:.2f}",
        flush=True,
    )
    print("clients  system      tokens/s  first token, s (median, 95 %)  ours / it  of our bound", flush=True)
    for clients in map(int, args.clients.split(",")):
        runs: dict[str, list[tuple[float, list[float]]]] = {}
        requests = make_requests(REQUESTS.get(clients, 2 * clients), clients, args.seed)
        total = sum(r.new for r in requests)
        for _ in range(args.rounds):
            runs.setdefault("slots", []).append(run_slots(engine, requests, clients))
            if clients <= STATIC:
                if not args.skip_one_by_one:
                    runs.setdefault("one by one", []).append(run_theirs(theirs, requests, 1))
                runs.setdefault(f"batches {STATIC}", []).append(run_theirs(theirs, requests, STATIC))
        ours = statistics.median(seconds for seconds, _ in runs["slots"])
        bound = len(requests) * prompt_seconds + total / min(clients, args.slots) * step_seconds
        for name, results in runs.items():
            seconds = statistics.median(seconds for seconds, _ in results)
            first = sorted(value for _, values in results for value in values)
            ratio = f"{bound / seconds:9.0%}" if name == "slots" else ""
            print(
                f"{clients:7}  {name:10}  {total / seconds:8.1f}  {statistics.median(first):9.2f} "
                f"{first[int(0.95 * (len(first) - 1))]:9.2f}            {seconds / ours:9.2f}  {ratio}",
                flush=True,
            )


if __name__ == "__main__":
    main()
