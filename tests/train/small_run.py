"""A LLaVA small enough to train in a test: its config, batches, states and steps."""

import dataclasses

import jax
import numpy as np

from llava_jax.config import Optimizer
from llava_jax.config.architectures import IMAGE_TOKEN_ID, LlamaConfig, ModelConfig, VisionConfig
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import global_batch
from llava_jax.train.optimizer import make_optimizer, rates
from llava_jax.train.state import abstract_state, enter_stage
from llava_jax.train.step import make_train_step

VISION = VisionConfig(
    image_size=24, patch_size=12, width=32, layers=3, heads=4, mlp_width=64,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
LLM = LlamaConfig(
    vocab_size=512, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_width=64, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=128,
)  # fmt: skip
CONFIG = ModelConfig(
    VISION, LLM, projector="mlp2x_gelu", dtype="float32", feature_dtype="float32", remat="none", unroll=False,
    attention="xla",
)  # fmt: skip

STAGE_1 = (("projector/.*", 1e-2), (".*", None))
STAGE_2 = (("vision/.*", None), (".*", 1e-3))
EVERYTHING = ((".*", 1e-3),)
OPTIMIZER = Optimizer(warmup_ratio=0.1, weight_decay=0.1, clip=1.0)


def changed(vision=(), llm=(), **changes) -> ModelConfig:
    """CONFIG with changed fields."""
    towers = dict(vision=dataclasses.replace(VISION, **dict(vision)), llm=dataclasses.replace(LLM, **dict(llm)))
    return dataclasses.replace(CONFIG, **towers, **changes)


def random_params(config: ModelConfig) -> dict[str, np.ndarray]:
    """Flat float32 parameters, of a size that makes every one of them matter; norms near 1."""
    rng = np.random.default_rng(0)
    shapes, _ = abstract_model(config)
    return {
        path: (path.endswith("scale") + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
        for path, x in sorted(shapes.items())
    }


def make_batch(rows: int, length: int = 16, seed: int = 0, config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    """Rows of unequal length, each with one image behind its first token. Row i supervises its last 1 + 2 i % 7 tokens,
    so the shares of a batch have unequal numbers of targets."""
    rng = np.random.default_rng(seed)
    side, features = config.vision.image_size, config.vision.features
    tokens = rng.integers(3, config.llm.vocab_size, (rows, length), dtype=np.int32)
    tokens[:, 1 : 1 + features] = IMAGE_TOKEN_ID
    lengths = length - np.arange(rows) % 3
    at = np.arange(length)
    real = at < lengths[:, None]
    supervised = at >= (lengths - 1 - 2 * np.arange(rows) % 7)[:, None]
    return {
        "tokens": np.where(real, tokens, 0).astype(np.int32),
        "target_mask": real & supervised,
        "positions": np.where(real, at, 0).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "images": rng.integers(0, 256, (rows, 1, side, side, 3), dtype=np.uint8),
    }


@dataclasses.dataclass
class Setup:
    """A state, the step that advances it, and the mesh it lives on. Use it inside `jax.set_mesh(setup.mesh)`."""

    model: Llava
    mesh: jax.sharding.Mesh
    abstract: object
    tx: object
    state: object
    step: object

    def batch(self, *args, **kwargs):
        return global_batch(make_batch(*args, **kwargs, config=self.model.config), self.mesh)


def setup(table, mesh=(1, 1, 1), config=CONFIG, optimizer=OPTIMIZER, steps=20, accumulation=1, chunks=1) -> Setup:
    """`random_params` of `config`, with the rates of `table`, on the first devices."""
    mesh = make_mesh(*mesh, jax.devices()[: int(np.prod(mesh))])
    shapes, _ = abstract_model(config)
    peak = rates(shapes, table)
    tx = make_optimizer(optimizer, {path: rate for path, rate in peak.items() if rate is not None}, steps)
    abstract = abstract_state(config, peak, tx, mesh)
    state = enter_stage(random_params(config), jax.random.PRNGKey(0), abstract, tx)
    model = Llava(config)
    return Setup(model, mesh, abstract, tx, state, make_train_step(model, tx, abstract, accumulation, chunks))
