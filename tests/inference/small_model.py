"""A LLaVA small enough to decode in no time, prompts for it, and a count of what gets compiled."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from llava_jax.config.architectures import IMAGE_TOKEN_ID, LlamaConfig, ModelConfig, VisionConfig
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_params

VISION = VisionConfig(
    image_size=24, patch_size=12, width=32, layers=2, heads=4, mlp_width=48,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
LLM = LlamaConfig(
    vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_width=48, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=64,
)  # fmt: skip
MODEL = Llava(
    ModelConfig(
        VISION,
        LLM,
        projector="linear",
        dtype="float32",
        feature_dtype="float32",
        remat="none",
        unroll=False,
        attention="xla",
    )  # fmt: skip
)
IMAGE = [IMAGE_TOKEN_ID] * VISION.features
UNUSED = 63  # never the likeliest token


def variant(dtype: str = "float32", **llm) -> Llava:
    """MODEL with a changed LLM."""
    return Llava(dataclasses.replace(MODEL.config, dtype=dtype, llm=dataclasses.replace(LLM, **llm)))


def random_params(model: Llava, seed: int = 2) -> dict:
    """Large enough that neighbours, positions and images all decide."""
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)  # noqa: E731
    made = jax.tree.map(draw, nn.unbox(abstract_params(model.config)))
    if not model.config.llm.tied_head:
        made["llm"]["head"]["kernel"] = made["llm"]["head"]["kernel"].at[:, UNUSED].set(0)
    return made


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


@contextlib.contextmanager
def compilations():
    """A list that grows by one with each program that is compiled meanwhile."""
    found = []

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
