"""Loads a model for the scheduler: weights on the mesh, an engine with all programs compiled."""

import dataclasses
from pathlib import Path
from typing import Any

from llava_jax.api.load import load
from llava_jax.errors import ConfigError
from llava_jax.inference.answer_memory import AnswerMemory
from llava_jax.inference.decode import decode_view
from llava_jax.inference.prefix_cache import PrefixCache
from llava_jax.inference.slot_engine import SlotEngine
from llava_jax.inference.warm_up import warm_up
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.runtime.mesh import make_mesh
from llava_jax.serve.scheduler import Backend


def load_backend(
    path: str | Path, *, mesh: tuple[int, int, int], slots: int, length: int, prefix_bytes: int, **options: Any
) -> Backend:  # fmt: skip
    """Loads and compiles; for large models that takes minutes.

    mesh: sizes of data, fsdp and tensor, see `make_mesh`. slots: requests that are answered at a time. length: tokens
    of a slot, limited by the model's positions. prefix_bytes: of device memory for what was read before. options: of
    `load`. Raises as `load` and `SlotEngine`.
    """
    model = load(path, mesh=make_mesh(*mesh), **options)
    length = min(length, model.config.llm.max_positions)
    if length - model.config.features < 2:
        raise ConfigError(f"--length {length} leaves no room beside an image of {model.config.features} tokens")
    params = decode_view(nested(model.params))
    model = dataclasses.replace(model, params={})  # else the weights would be in memory twice
    engine = SlotEngine(
        Llava(model.config), params, model.mesh, slots=slots, length=length, prefixes=PrefixCache(prefix_bytes)
    )
    warm_up(engine)
    return Backend(model, engine, AnswerMemory(model.tokenizer))
