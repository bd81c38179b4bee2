"""Checks that answers do not depend on who else asks: random schedules of requests, on a tiny model in float32.

    python launch/bench/check_schedules.py --schedules 10000 [--seed 0] [--fault key|cache|mask] [--dtype bfloat16]
    python launch/bench/check_schedules.py --conversations 1000

A schedule has 1 to 64 requests with random arrivals, lengths, images and sampling. Some begin as others ended, some are
cancelled while they wait, are read or are answered. Each answer must equal, token by token, the one to its prompt alone
with nothing cached. --fault plants one: the key of a neighboring slot, a prefix that is one token too long, a mask that
depends on the size of a prompt's part. A conversation has 10 turns: log-probabilities with cached turns must equal
those without to 1e-5 of the largest. Exit code 1 where something differs, as it does in bfloat16.
"""

import argparse
import dataclasses
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from llava_jax.config.architectures import IMAGE_TOKEN_ID  # noqa: E402
from llava_jax.inference import slots as device  # noqa: E402
from llava_jax.inference.engine import GenerationConfig, Prompt  # noqa: E402
from llava_jax.inference.prefix_cache import PrefixCache  # noqa: E402
from llava_jax.inference.slot_engine import SlotEngine, SlotToken  # noqa: E402
from llava_jax.models import llama  # noqa: E402
from llava_jax.models.llava import Llava  # noqa: E402
from llava_jax.runtime.mesh import make_mesh  # noqa: E402

VOCABULARY, POSITIONS, SLOTS, LENGTH = 64, 256, 8, 192
PICTURES = np.random.default_rng(7).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)


@dataclasses.dataclass
class Request:
    """One question, when it comes, and when its client leaves."""

    prompt: Prompt
    settings: GenerationConfig
    arrival: int  # calls of `advance` before it
    cancel_at: int | None = None  # calls of `advance` after its arrival
    ids: list[int] = dataclasses.field(default_factory=list)
    slot: int | None = None
    state: str = "expected"  # then waiting, open, and complete or cancelled


def tiny_model(dtype: str = "float32", **llm) -> tuple[Llava, dict]:
    """A random LLaVA whose answers change with every token, position and image. llm: fields of the language model."""
    from llava_jax.inference.decode import decode_view
    from tests.fixtures.decoding import decoding_params, variant

    model = variant(dtype, vocab_size=VOCABULARY, max_positions=POSITIONS, **llm)
    params = decoding_params(model)
    return model, decode_view(jax.tree.map(lambda x: x.astype(dtype), params))


def new_engine(model: Llava, params: dict, prefix_bytes: int) -> SlotEngine:
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return SlotEngine(model, params, mesh, slots=SLOTS, length=LENGTH, prefixes=PrefixCache(prefix_bytes))


def random_prompt(rng: random.Random, features: int, row: int = 0) -> Prompt:
    """1 to 3 parts of text with up to 3 images between them; many are longer than one part of a prompt."""
    tokens, images = [1], []
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        images.append(PICTURES[rng.randrange(len(PICTURES))])
        tokens += [IMAGE_TOKEN_ID] * features + random_text(rng, rng.choice([1, 5, 30]))
    return Prompt(tokens + random_text(rng, rng.choice([1, 8, 20, 60])), images, row)


def random_text(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(4, VOCABULARY) for _ in range(length)]


def random_schedule(rng: random.Random, features: int) -> list[Request]:
    """Half of the schedules are crowded, a quarter repeats prompts and continues answers."""
    is_crowded, is_cached = rng.random() < 0.5, rng.random() < 0.25
    count = rng.randint(8, 64) if is_crowded else rng.randint(1, 12)
    prompts = [random_prompt(rng, features) for _ in range(count)]
    if is_cached:
        for i in range(1, count):
            if rng.random() < 0.6:  # as a conversation continues, or a question about the same image
                base = prompts[rng.randrange(i)]
                kept = rng.randint(1, len(base.tokens)) if not len(base.images) else len(base.tokens)
                tokens = [*base.tokens[:kept], *random_text(rng, rng.choice([1, 3, 12]))]
                if len(tokens) < LENGTH - 20:
                    prompts[i] = Prompt(tokens, base.images)
    requests = []
    for prompt in prompts:
        sampled = dict(temperature=0.9, top_k=rng.choice([0, 20]), top_p=rng.choice([1.0, 0.9]), seed=rng.randrange(9))
        settings = GenerationConfig(
            (rng.randrange(VOCABULARY),), max_new_tokens=rng.randint(1, 16), **(sampled if rng.random() < 0.4 else {})
        )
        arrival = rng.randint(0, 6 if is_crowded else 60)
        leaves = rng.randint(0, 20) if rng.random() < 0.2 else None
        requests.append(Request(prompt, settings, arrival, leaves))
    return sorted(requests, key=lambda r: r.arrival)


def serve(engine: SlotEngine, requests: list[Request]) -> int:
    """Answers the requests as they come. Returns the largest number of open slots."""
    clock, most = 0, 0
    while any(r.state in ("expected", "waiting", "open") for r in requests):
        for r in requests:
            if r.state == "expected" and r.arrival <= clock:
                r.state = "waiting"
            if r.cancel_at is not None and clock == r.arrival + r.cancel_at and r.state in ("waiting", "open"):
                if r.state == "open":
                    engine.close(r.slot)
                r.state = "cancelled"
            if r.state == "waiting":
                r.slot = engine.open(r.prompt, r.settings)
                r.state = "waiting" if r.slot is None else "open"
        by_slot = {r.slot: r for r in requests if r.state == "open"}
        most = max(most, len(by_slot))
        for token in engine.advance():
            receive(engine, by_slot[token.slot], token)
        clock += 1
    return most


def receive(engine: SlotEngine, request: Request, token: SlotToken) -> None:
    if token.fault:
        raise RuntimeError(token.fault)
    request.ids.append(token.id)
    if token.id in request.settings.stop_ids or len(request.ids) == request.settings.max_new_tokens:
        request.state = "complete"
        engine.close(token.slot)


def answer_alone(engine: SlotEngine, request: Request) -> list[int]:
    alone = Request(request.prompt, request.settings, 0)
    serve(engine, [alone])
    return alone.ids


def differing_requests(alone: SlotEngine, requests: list[Request]) -> list[Request]:
    """The requests whose answer, complete or cut off, is not the beginning of the answer alone."""
    return [r for r in requests if r.ids and answer_alone(alone, r)[: len(r.ids)] != r.ids]


def plant_fault(name: str) -> Callable[[], None]:
    """Breaks the engine. Returns what mends it again. Programs that are compiled already stay as they are."""
    choose, mask, longest = device.choose, llama.attention_mask, PrefixCache.longest

    def of_neighbor(logits, sampling, positions):
        return choose(logits, sampling.replace(seed=jnp.roll(sampling.seed, 1)), positions)

    def one_too_many(self, tokens):
        count, arrays = longest(self, tokens)
        return count + bool(count), arrays

    def one_further(q_positions, *others):
        return mask(q_positions + (q_positions.shape[1] == 64), *others)

    if name == "key":
        device.choose = of_neighbor
    elif name == "cache":
        PrefixCache.longest = one_too_many
    else:
        llama.attention_mask = one_further

    def mend():
        device.choose, llama.attention_mask, PrefixCache.longest = choose, mask, longest

    return mend


def check_schedules(model: Llava, params: dict, count: int, seed: int, stop_at_first: bool = False) -> Counter:
    """Runs schedules. Returns counts: schedules, crowded (8 or more open slots), requests, tokens, differing, ..."""
    engine, alone = new_engine(model, params, 1 << 20), new_engine(model, params, 0)
    counts: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        requests = random_schedule(rng, model.config.features)
        counts["crowded"] += serve(engine, requests) >= 8
        differing = differing_requests(alone, requests)
        counts["schedules"] += 1
        counts["requests"] += len(requests)
        counts["cancelled"] += sum(r.state == "cancelled" for r in requests)
        counts["sampled"] += sum(r.settings.temperature > 0 for r in requests)
        counts["tokens"] += sum(len(r.ids) for r in requests)
        counts["differing"] += len(differing)
        for r in differing[:3]:
            print(f"schedule {number}: {r.ids} is not the beginning of {answer_alone(alone, r)}", flush=True)
        if differing and stop_at_first:
            break
    counts["cached tokens"] = engine.counters.prompt_tokens_cached
    counts["tokens read"] = engine.counters.prompt_tokens_read
    return counts


def conversation_turns(engine: SlotEngine, rng: random.Random, turns: int) -> list[tuple[list[int], list[float]]]:
    """A conversation about one image -> ids and log-probabilities of every answer."""
    tokens, images = [1] + [IMAGE_TOKEN_ID] * engine.model.config.features, [PICTURES[rng.randrange(len(PICTURES))]]
    answers = []
    for _ in range(turns):
        tokens = tokens + random_text(rng, rng.randint(2, 6))
        slot = engine.open(Prompt(tokens, images), GenerationConfig((), max_new_tokens=8), wants_logprobs=True)
        ids, logprobs = [], []
        while len(ids) < 8:
            for token in engine.advance():
                ids.append(token.id)
                logprobs += [token.logprob, *(value for _, value in token.top)]
        engine.close(slot)
        tokens = tokens + ids
        answers.append((ids, logprobs))
    return answers


def check_conversations(model: Llava, params: dict, count: int, seed: int, turns: int = 10) -> tuple[int, float, float]:
    """Returns (turns whose ids differ, largest difference of a log-probability in units of the largest one of its
    answer, tokens read uncached / cached)."""
    cached, uncached = new_engine(model, params, 1 << 20), new_engine(model, params, 0)
    differing, largest = 0, 0.0
    for number in range(count):
        both = [conversation_turns(e, random.Random(f"{seed} {number}"), turns) for e in (cached, uncached)]
        for (ids, logprobs), (other_ids, other_logprobs) in zip(*both, strict=True):
            differing += ids != other_ids
            difference = np.abs(np.subtract(logprobs, other_logprobs)).max()
            largest = max(largest, float(difference / np.abs(other_logprobs).max()))
    return differing, largest, uncached.counters.prompt_tokens_read / cached.counters.prompt_tokens_read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=("key", "cache", "mask"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    if args.fault:
        plant_fault(args.fault)
    model, params = tiny_model(args.dtype)
    failed = False
    began = time.monotonic()
    if args.schedules:
        counts = check_schedules(model, params, args.schedules, args.seed, stop_at_first=bool(args.fault))
        print(", ".join(f"{name}: {count:,}" for name, count in counts.items()))
        failed |= counts["differing"] > 0
    if args.conversations:
        differing, largest, ratio = check_conversations(model, params, args.conversations, args.seed)
        print(f"{args.conversations:,} conversations of 10 turns: {differing} turns differ, log-probabilities by up to "
              f"{largest:.1e} of the largest; without the cache {ratio:.1f} times as many tokens are read")  # fmt: skip
        failed |= differing > 0 or largest > 1e-5
    print(f"{time.monotonic() - began:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
