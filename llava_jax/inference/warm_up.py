"""Compiles what an engine runs before the first request comes, and measures how fast it is."""

import time
from collections.abc import Callable

import jax
import numpy as np

from llava_jax.inference import slots as device
from llava_jax.inference.engine import GenerationConfig, Prompt
from llava_jax.inference.prefix_cache import PrefixCache
from llava_jax.inference.slot_engine import CHUNKS, Counters, SlotEngine

ROUNDS = 3  # the fastest one counts
SHARE = 1.1  # of a step: the time measured for a part includes its way through Python, which a step hides


def warm_up(engine: SlotEngine) -> None:
    """Compiles every program, so that no request waits for that, and sets `part_beside_answers`: the largest part of a
    prompt that takes about as long as a step."""
    size = engine.model.config.image_size
    prefixes, engine.prefixes = engine.prefixes, PrefixCache(0)  # what is cached would take no time
    for length in CHUNKS:
        _read(engine, length)
    with jax.set_mesh(engine.mesh):
        if engine.model.config.vision:
            engine.images.encode(b"", np.zeros((size, size, 3), np.uint8), ())
        for length in engine.prefix_lengths():
            prefix = device.copy_prefix(engine.state, np.int32(0), length)
            engine.state = device.insert_prefix(engine.state, prefix, np.int32(0), np.int32(0))
        engine.run_step([])
        engine.state = device.clear_slot(engine.state, np.int32(0))
        step = min(_seconds(lambda: engine.run_step([]).token) for _ in range(ROUNDS))
    parts = [
        length for length in CHUNKS
        if min(_seconds(lambda: _read(engine, length)) for _ in range(ROUNDS)) <= SHARE * step  # noqa: B023
    ]  # fmt: skip
    engine.part_beside_answers = max(parts, default=CHUNKS[0])
    engine.counters, engine.prefixes = Counters(), prefixes


def _read(engine: SlotEngine, length: int) -> None:
    """Reads a prompt of one part."""
    prompt = Prompt(np.zeros(min(length, engine.length - 1), np.int32))
    slot, tokens = engine.open(prompt, GenerationConfig((0,), max_new_tokens=1)), []
    while not tokens:
        tokens = engine.advance()
    engine.close(slot)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start
