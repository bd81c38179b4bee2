"""Compiles what an engine runs before the first request comes, and measures how fast it is."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from llava_jax.inference import slots as device
from llava_jax.inference.engine import GenerationConfig, Prompt
from llava_jax.inference.prefix_cache import PrefixCache
from llava_jax.inference.sampling import SamplingParams
from llava_jax.inference.slot_engine import CHUNKS, Counters, SlotEngine

ROUNDS = 3  # the fastest one counts
GAP = 2.0  # times a step; what a running answer may wait for its next token while a prompt is read


def warm_up(engine: SlotEngine) -> None:
    """Compiles every program, so that no request waits for that, and sets `part_beside_answers`: the largest part of a
    prompt with which a step takes up to GAP times as long as without."""
    model, params, size = engine.model, engine.params, engine.model.config.image_size
    prefixes, engine.prefixes = engine.prefixes, PrefixCache(0)  # copies of prefixes are compiled below
    for length in CHUNKS:
        _read(engine, length)
    inactive = np.zeros(len(engine.conversations), bool)

    def step(chunk: device.Chunk | None = None) -> jax.Array:
        if chunk is None:
            engine.state, chosen = device.decode_slots(model, params, engine.state, inactive, np.bool_(False))
        else:
            engine.state, chosen = device.read_chunk(
                model, params, engine.state, engine.images.features, chunk, inactive
            )
        return chosen.token

    with jax.set_mesh(engine.mesh):
        if model.config.vision:
            engine.images.encode(b"", np.zeros((size, size, 3), np.uint8), ())
        for length in engine.prefix_lengths():
            prefix = device.copy_prefix(engine.state, np.int32(0), length)
            engine.state = device.insert_prefix(engine.state, prefix, np.int32(0), np.int32(0))
        engine.state = device.clear_slot(engine.state, np.int32(0))
        alone = _seconds(step)
        for length in [n for n in CHUNKS if n <= engine.length]:
            seconds = _seconds(functools.partial(step, _chunk(length)))
            if length > CHUNKS[0] and seconds > GAP * alone:
                break
            engine.part_beside_answers = length
    engine.counters, engine.prefixes = Counters(), prefixes


def _chunk(length: int) -> device.Chunk:
    """The first tokens of a prompt in slot 0."""
    greedy = SamplingParams(np.float32([0]), np.int32([0]), np.float32([1]), np.uint32([0]), np.uint32([0]))
    zeros = np.zeros(length, np.int32)
    return device.Chunk(np.int32(0), np.int32(0), np.int32(length), zeros, zeros, greedy, np.bool_(False))


def _read(engine: SlotEngine, length: int) -> None:
    """Reads a prompt of one part."""
    prompt = Prompt(np.zeros(min(length, engine.length - 1), np.int32))
    slot, tokens = engine.open(prompt, GenerationConfig((0,), max_new_tokens=1)), []
    while not tokens:
        tokens = engine.advance()
    engine.close(slot)


def _seconds(work: Callable[[], jax.Array]) -> float:
    """Compiles it first."""
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
