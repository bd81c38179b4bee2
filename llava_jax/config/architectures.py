"""Model shapes: frozen dataclasses and the named architectures.

Sources: CLIP, arXiv 2103.00020 and `openai/clip-vit-large-patch14[-336]`; LLaMA, arXiv 2302.13971; Llama 2, arXiv
2307.09288; Llama 3, arXiv 2407.21783; Vicuna keeps LLaMA's shapes (v1.3: LLaMA-1, v1.5: Llama 2); SmolLM2-135M, its
model card. Fields that define an architecture have no defaults: model code cannot silently assume other values.
"""

import dataclasses
import re

from llava_jax.errors import ConfigError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's normalization, per RGB channel
STD = (0.26862954, 0.26130258, 0.27577711)

IMAGE_TOKEN_ID = -200  # placeholder token of one image feature; the original LLaVA has one per image


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A CLIP ViT. `select_layer` counts hidden states as Hugging Face does: 0 is the embedding output, k the output of
    block k, negative from the end; LLaVA uses -2 (block 23 of 24)."""

    image_size: int  # pixels, square
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str  # quick_gelu | gelu | gelu_tanh | silu
    norm_eps: float
    select_layer: int
    select_feature: str  # patch (CLS dropped) | cls_patch

    @property
    def patches(self) -> int:
        """Patches of one image: 256 for L/14-224, 576 for L/14-336."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def features(self) -> int:
        """Feature vectors (and so placeholder tokens) of one image."""
        return self.patches + (self.select_feature == "cls_patch")

    @property
    def blocks_used(self) -> int:
        """Blocks that run to produce hidden state `select_layer`."""
        return self.select_layer if self.select_layer >= 0 else self.layers + 1 + self.select_layer


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary position scaling, see models/rope.py. A kind uses `factor` and the fields that name it."""

    kind: str  # linear | llama3 | dynamic | yarn
    factor: float
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_positions: int = 8192  # llama3, dynamic, yarn
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: the bounds of its ramp are whole channels
    attention_factor: float = 1.0  # yarn


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-family decoder. The fields with defaults are younger than the others: native folders written before lack
    them, and mean these values."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    norm_eps: float
    rope_base: float
    rope_scaling: RopeScaling | None
    qkv_bias: bool
    tied_head: bool
    max_positions: int
    o_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    activation: str = "silu"  # silu | gelu | gelu_tanh | quick_gelu


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A LLaVA: two towers, the projector between them, and how they compute. In a text-only model `vision` and
    `projector` are None."""

    vision: VisionConfig | None
    llm: LlamaConfig
    projector: str | None  # linear | mlpNx_ and an activation, such as mlp2x_gelu
    dtype: str  # float32 | bfloat16: dtype of matrix products and activations
    feature_dtype: str  # float32 | bfloat16: compute dtype of the vision tower
    remat: str  # a name in REMAT
    unroll: bool  # unroll the layers instead of scanning over them
    attention: str  # xla | splash | splash_interpreted | cudnn: see models/attention.py

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels; 0 for a text-only model."""
        return self.vision.image_size if self.vision else 0

    @property
    def features(self) -> int:
        """Placeholder tokens of one image; 0 for a text-only model."""
        return self.vision.features if self.vision else 0


@dataclasses.dataclass(frozen=True)
class Remat:
    """A rematerialization policy: the tensors of a block, besides its input, that are saved for the backward pass. All
    others are recomputed. Names: q, k, v (after rotary embedding), context (attention output before the output
    projection; with a kernel also its log-sum-exp), out (after the output projection), gate, up."""

    keep: tuple[str, ...] = ()  # saved in device memory
    offload: tuple[str, ...] = ()  # moved to host memory and back


# Costs are values per token and layer, for D width, H heads, K key/value heads, E head size, F MLP width. Later
# policies need more memory and less compute; offloading costs transfers instead of device memory.
REMAT: dict[str, Remat | None] = {
    "full": Remat(),  # saves nothing; the forward pass runs twice, except last products
    "save_context": Remat(("context",)),  # H E, and H in float32: the attention kernel does not rerun (splash only)
    "offload_qkv": Remat((), ("q", "k", "v")),  # save_qkv in host memory: when device memory is full
    "save_qkv": Remat(("q", "k", "v")),  # (H + 2 K) E: spares three products and rotary embedding
    "save_qkv_context": Remat(("q", "k", "v", "context")),  # both: of attention only the output projection reruns
    # (2 H + 2 K) E + D + 2 F: no product reruns; norms, SiLU and, without a kernel, attention scores are recomputed.
    "minimal": Remat(("q", "k", "v", "context", "out", "gate", "up")),
    "none": None,  # saves everything
}


def _clip_l14(image_size: int) -> VisionConfig:
    return VisionConfig(
        image_size=image_size, patch_size=14, width=1024, layers=24, heads=16, mlp_width=4096,
        activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
    )  # fmt: skip


def _llama(width: int, layers: int, heads: int, mlp_width: int, **changes) -> LlamaConfig:
    llama_1 = LlamaConfig(
        vocab_size=32_000, width=width, layers=layers, heads=heads, kv_heads=heads, head_size=width // heads,
        mlp_width=mlp_width, norm_eps=1e-6, rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False,
        max_positions=2048,
    )  # fmt: skip
    return dataclasses.replace(llama_1, **changes)


_LLAMA_1 = {"7b": _llama(4096, 32, 32, 11_008), "13b": _llama(5120, 40, 40, 13_824)}
_LLAMA_2 = {size: dataclasses.replace(c, norm_eps=1e-5, max_positions=4096) for size, c in _LLAMA_1.items()}

VISION = {
    "clip_l14_224": _clip_l14(224),
    "clip_l14_336": _clip_l14(336),
    "small_128": VisionConfig(  # CLIP's design, small enough to train from scratch on two CPU cores
        image_size=128, patch_size=32, width=256, layers=6, heads=4, mlp_width=1024,
        activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
    ),
    "tiny": VisionConfig(
        image_size=48, patch_size=16, width=128, layers=4, heads=4, mlp_width=512,
        activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
    ),
}  # fmt: skip

LLM = {
    "llama_7b": _LLAMA_1["7b"],
    "llama_13b": _LLAMA_1["13b"],
    "vicuna_7b_v1.3": _LLAMA_1["7b"],
    "vicuna_13b_v1.3": _LLAMA_1["13b"],
    "llama2_7b": _LLAMA_2["7b"],
    "llama2_13b": _LLAMA_2["13b"],
    "vicuna_7b_v1.5": _LLAMA_2["7b"],
    "vicuna_13b_v1.5": _LLAMA_2["13b"],
    "llama3_8b": _llama(
        4096, 32, 32, 14_336, vocab_size=128_256, kv_heads=8, norm_eps=1e-5, rope_base=500_000.0, max_positions=8192
    ),
    "smollm2_135m": _llama(
        576, 30, 9, 1536, vocab_size=49_152, kv_heads=3, norm_eps=1e-5, rope_base=100_000.0, tied_head=True,
        max_positions=8192,
    ),
    "tiny": _llama(128, 4, 4, 344, vocab_size=512, norm_eps=1e-5, tied_head=True, max_positions=512),
}  # fmt: skip


def projector_depth(name: str) -> int:
    """Number of linear layers of a projector: `linear` -> 1, `mlp2x_gelu` -> 2. Raises ConfigError for other names."""
    match = re.fullmatch(r"mlp(\d+)x_(gelu|gelu_tanh|quick_gelu|silu)", name)
    depth = 1 if name == "linear" else int(match[1]) if match else 0
    if depth < 1:
        raise ConfigError(f"projector {name!r} is unknown; use linear or mlpNx_gelu, such as mlp2x_gelu")
    return depth
