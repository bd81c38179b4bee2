"""Resolves the names in a config: model shapes, and the attention kernel of a platform."""

import dataclasses

from llava_jax.config import architectures
from llava_jax.config.architectures import LlamaConfig, VisionConfig
from llava_jax.config.build import check_choice, look_up
from llava_jax.config.schema import Model
from llava_jax.errors import ConfigError

KERNELS = {"tpu": "splash", "cuda": "cudnn"}  # by platform, see models/attention.py; other platforms use `xla`
FOLDER = "folder"  # as model.vision or model.llm: the architecture is that of the files in load.vision or load.llm


def named_tower(model: Model, module: str) -> VisionConfig | LlamaConfig | None:
    """The architecture that `model.vision` or `model.llm` names, None for `folder`. Raises ConfigError for others."""
    name, table = getattr(model, module), architectures.VISION if module == "vision" else architectures.LLM
    return look_up(table | {FOLDER: None}, name, f"model.{module}")


def model_config(
    model: Model, platform: str | None = None, vision: VisionConfig | None = None, llm: LlamaConfig | None = None
) -> architectures.ModelConfig:
    """Resolves the names of `model` to shapes, and the attention kernel for `platform` (tpu | cuda | rocm | cpu; None
    outside training, which gives `xla`). vision, llm: used instead of the named ones, see `checkpoint.architecture`.
    Raises ConfigError for an unknown name, and for a requested kernel that does not support this model or platform."""
    vision, llm = vision or named_tower(model, "vision"), llm or named_tower(model, "llm")
    if vision is None or llm is None:
        module = "llm" if vision else "vision"
        raise ConfigError(f"model.{module}={FOLDER!r} needs the files in load.{module}, which are not read here")
    vision = dataclasses.replace(vision, select_layer=model.select_layer, select_feature=model.select_feature)
    if not 0 <= vision.blocks_used <= vision.layers:
        raise ConfigError(f"model.select_layer={model.select_layer} does not exist in a ViT of {vision.layers} blocks")
    return architectures.ModelConfig(
        vision=vision, llm=llm, projector=model.projector, dtype=model.dtype, feature_dtype=model.feature_dtype,
        remat=model.remat, unroll=model.unroll, attention=_attention(model, llm.head_size, platform),
    )  # fmt: skip


def _attention(model: Model, head_size: int, platform: str | None) -> str:
    check_choice(model.attention, ("auto", "xla", *KERNELS.values()), "config.model.attention")
    requested, fused_kernel = model.attention, KERNELS.get(platform)
    if platform is None or requested == "xla":
        return "xla"
    if fused_kernel is None or requested not in ("auto", fused_kernel):
        reason = f"does not run on {platform}"
    elif model.dtype != "bfloat16":
        reason = f"computes in bfloat16, not in model.dtype={model.dtype!r}"  # float32 is float32 on every device
    elif fused_kernel == "cudnn" and (head_size > 128 or head_size % 8):
        reason = f"needs a head size up to 128 that is a multiple of 8, not the {head_size} of {model.llm}"
    else:
        return fused_kernel
    if requested == "auto":
        return "xla"
    raise ConfigError(f"config.model.attention={requested!r} {reason}; use auto or xla")
