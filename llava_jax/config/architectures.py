"""The shapes of the towers: frozen dataclasses and the named architectures.

Sources: CLIP, arXiv 2103.00020 and `openai/clip-vit-large-patch14[-336]`; LLaMA, arXiv 2302.13971; Llama 2, arXiv
2307.09288; Llama 3, arXiv 2407.21783; Vicuna keeps LLaMA's shapes (v1.3: LLaMA-1, v1.5: Llama 2); SmolLM2-135M, its
model card. Every field is an architecture fact and has no default, so that no model code can hold a second opinion.
"""

import dataclasses
import re

from llava_jax.errors import ConfigError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, per RGB channel
STD = (0.26862954, 0.26130258, 0.27577711)

IMAGE_TOKEN_ID = -200  # stands where an image feature goes; the original has one per image, here it is one per feature


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
    activation: str  # quick_gelu | gelu
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
        """How many blocks run to produce hidden state `select_layer`."""
        return self.select_layer if self.select_layer >= 0 else self.layers + 1 + self.select_layer


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary positions. `linear` divides positions by `factor`; `llama3` scales low frequencies only and
    needs the other three fields."""

    kind: str  # linear | llama3
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-family decoder."""

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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole LLaVA: two towers, the projector between them, and how to compute. Or a language model alone: then
    `vision` and `projector` are None."""

    vision: VisionConfig | None
    llm: LlamaConfig
    projector: str | None  # linear | mlpNx_gelu
    dtype: str  # float32 | bfloat16: matrix products and activations
    feature_dtype: str  # float32 | bfloat16: what the vision tower computes in
    remat: str  # a name in REMAT
    unroll: bool  # layers as straight-line code instead of a loop
    attention: str  # xla | splash | splash_interpreted | cudnn: see models/attention.py

    @property
    def image_size(self) -> int:
        """Pixels of a side of the images; 0 where there are none."""
        return self.vision.image_size if self.vision else 0

    @property
    def features(self) -> int:
        """Placeholder tokens of one image; 0 where there are none."""
        return self.vision.features if self.vision else 0


@dataclasses.dataclass(frozen=True)
class Remat:
    """What the backward pass finds of a block beside its input, by the names that the blocks give their tensors:
    q k v (rotated), context (of attention, before its last product; from a kernel its log-sum-exp too), out (of
    attention, behind it), gate, up. All else it computes again."""

    keep: tuple[str, ...] = ()  # where it is
    offload: tuple[str, ...] = ()  # moved to the host's memory and back


# Costs are a token's and a layer's values, for D width, H heads, K key/value heads, E head size, F MLP width. The later
# the policy, the more memory and the less work, except that what is offloaded costs transfers.
REMAT: dict[str, Remat | None] = {
    "full": Remat(),  # nothing: the least memory; the forward pass runs twice, but for each block's last product
    "save_context": Remat(("context",)),  # H E, and H in float32: spares the attention kernel (splash only)
    "offload_qkv": Remat((), ("q", "k", "v")),  # as save_qkv, in the host's memory: for a chip that is full
    "save_qkv": Remat(("q", "k", "v")),  # (H + 2 K) E: spares three products and the rotation
    "save_qkv_context": Remat(("q", "k", "v", "context")),  # both: spares all of attention but its last product
    # (2 H + 2 K) E + D + 2 F: every product is spared; norms, SiLU and, without a kernel, the scores are made again.
    "minimal": Remat(("q", "k", "v", "context", "out", "gate", "up")),
    "none": None,  # everything
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
    "small_128": VisionConfig(  # CLIP's shape, of a size that two cores can train from nothing
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
    """Linear layers of a named projector: `linear` -> 1, `mlp2x_gelu` -> 2. Raises ConfigError for any other name."""
    match = re.fullmatch(r"mlp(\d+)x_gelu", name)
    depth = 1 if name == "linear" else int(match[1]) if match else 0
    if depth < 1:
        raise ConfigError(f"projector {name!r} is unknown; use linear or mlpNx_gelu, such as mlp2x_gelu")
    return depth
