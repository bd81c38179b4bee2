"""Random transformers models of our small configs, and their weights as our parameter trees."""

import dataclasses

import jax
import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers import LlamaConfig as HFLlamaConfig

from llava_jax.checkpoint.torch_tensors import name_map, transpose
from llava_jax.config.architectures import LlamaConfig, ModelConfig, VisionConfig
from llava_jax.models.params import abstract_model, nested

VISION = VisionConfig(
    image_size=24, patch_size=8, width=32, layers=3, heads=4, mlp_width=48,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
LLM = LlamaConfig(
    vocab_size=64, width=40, layers=3, heads=4, kv_heads=2, head_size=10, mlp_width=56, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=128,
)  # fmt: skip
SMALL = ModelConfig(
    VISION, LLM, projector="mlp2x_gelu", dtype="float32", feature_dtype="float32", remat="none", unroll=False,
    attention="xla",
)  # fmt: skip


def small(vision=(), llm=(), **changes) -> ModelConfig:
    """SMALL with changed fields."""
    return dataclasses.replace(
        SMALL, vision=dataclasses.replace(VISION, **dict(vision)), llm=dataclasses.replace(LLM, **dict(llm)), **changes
    )


def clip_config(c: VisionConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        image_size=c.image_size, patch_size=c.patch_size, hidden_act=c.activation, layer_norm_eps=c.norm_eps,
    )  # fmt: skip


def llama_config(c: LlamaConfig) -> HFLlamaConfig | Qwen2Config:
    rope = {"rope_type": "default", "rope_theta": c.rope_base}
    if c.rope_scaling:
        s = c.rope_scaling
        rope |= {"rope_type": s.kind, "factor": s.factor}
    if c.rope_scaling and s.kind == "llama3":
        rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        rope |= {"original_max_position_embeddings": s.original_max_positions}
    cls = Qwen2Config if c.qkv_bias else HFLlamaConfig
    head = {} if c.qkv_bias else {"head_dim": c.head_size}
    return cls(
        vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, rms_norm_eps=c.norm_eps, rope_parameters=rope,
        max_position_embeddings=c.max_positions, tie_word_embeddings=c.tied_head, **head,
    )  # fmt: skip


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn anew, norms and biases too, so that none can be dropped unnoticed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.2 if p.ndim > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.eval()


def hf_clip(c: VisionConfig) -> CLIPVisionModel:
    return randomized(CLIPVisionModel(clip_config(c)))


def hf_llama(c: LlamaConfig) -> LlamaForCausalLM | Qwen2ForCausalLM:
    cls = Qwen2ForCausalLM if c.qkv_bias else LlamaForCausalLM
    return randomized(cls(llama_config(c)))


def hf_llava(c: ModelConfig, image_token: int) -> LlavaForConditionalGeneration:
    """Only the two-layer MLP projector exists there."""
    assert c.projector == "mlp2x_gelu"
    strategy = {"patch": "default", "cls_patch": "full"}[c.vision.select_feature]
    config = LlavaConfig(
        vision_config=clip_config(c.vision), text_config=llama_config(c.llm), image_token_index=image_token,
        vision_feature_layer=c.vision.select_layer, vision_feature_select_strategy=strategy,
        projector_hidden_act="gelu", image_seq_length=c.vision.features,
    )  # fmt: skip
    return randomized(LlavaForConditionalGeneration(config))


def weights(model: torch.nn.Module, prefix: str = "", instead: str = "") -> dict[str, np.ndarray]:
    """The part of the state dict below `prefix`, names with `instead` in its place."""
    found = model.state_dict().items()
    return {instead + k[len(prefix) :]: v.detach().numpy() for k, v in found if k.startswith(prefix)}


def params(rows, w: dict[str, np.ndarray], shapes: dict) -> dict:
    """The parameters of one module as a tree. shapes: flat paths below the module -> shape."""
    found = {}
    for row in rows:
        if row.path in shapes:
            shape = shapes[row.path].shape
            found[row.path] = transpose.read(row, shape, (slice(None),) * len(shape), np.float32, lambda n, i: w[n][i])
    assert found.keys() == shapes.keys()
    return nested(found)


def _shapes(c: ModelConfig, module: str) -> dict:
    return {p.removeprefix(f"{module}/"): x for p, x in abstract_model(c)[0].items() if p.startswith(f"{module}/")}


def clip_params(w: dict[str, np.ndarray], c: ModelConfig) -> dict:
    return params(name_map.CLIP, w, _shapes(c, "vision"))


def llama_params(w: dict[str, np.ndarray], c: ModelConfig) -> dict:
    return params(name_map.LLAMA, w, _shapes(c, "llm"))


def llava_params(model: LlavaForConditionalGeneration, c: ModelConfig) -> dict:
    llm = {f"model.{k}": v for k, v in weights(model, "model.language_model.").items()}
    projector = name_map.projector_rows(2, "hf")
    return {
        "vision": clip_params(weights(model, "model.vision_tower."), c),
        "projector": params(projector, weights(model, "model.multi_modal_projector."), _shapes(c, "projector")),
        "llm": llama_params(llm | weights(model, "lm_head", "lm_head"), c),
    }


def random_params(config: ModelConfig) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes, _ = abstract_model(config)
    return {p: jax.numpy.asarray(0.2 * rng.standard_normal(x.shape, dtype=np.float32)) for p, x in shapes.items()}
