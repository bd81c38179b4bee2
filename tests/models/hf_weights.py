"""Random transformers models of our small configs, and their weights as our parameter trees."""

import dataclasses

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

from llava_jax.architectures import LlamaConfig, ModelConfig, VisionConfig

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


def weights(model: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    """The part of the state dict below `prefix`, names without it."""
    return {k[len(prefix) :]: v.detach().numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}


def _stack(w: dict, layers: int, pattern: str, arrange) -> np.ndarray:
    return np.stack([arrange(w[pattern.format(i)]) for i in range(layers)])


def _norm(w: dict, name: str) -> dict:
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def clip_params(w: dict[str, np.ndarray], c: VisionConfig) -> dict:
    e = c.width // c.heads

    def layer(name, weight, bias="bias", arrange=lambda x: x, arrange_bias=lambda x: x):
        at = "encoder.layers.{}." + name
        return {
            weight: _stack(w, c.layers, at + ".weight", arrange),
            bias: _stack(w, c.layers, at + ".bias", arrange_bias),
        }

    def qkv(name):
        kernel = lambda x: x.T.reshape(c.width, c.heads, e)  # noqa: E731
        return layer(f"self_attn.{name}_proj", "kernel", "bias", kernel, lambda x: x.reshape(c.heads, e))

    return {
        "patch": {"kernel": w["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)},
        "cls": {"embedding": w["embeddings.class_embedding"]},
        "position": {"embedding": w["embeddings.position_embedding.weight"]},
        "pre_norm": _norm(w, "pre_layrnorm"),
        "post_norm": _norm(w, "post_layernorm"),
        "layers": {
            "attention_norm": layer("layer_norm1", "scale"),
            "q": qkv("q"),
            "k": qkv("k"),
            "v": qkv("v"),
            "o": layer("self_attn.out_proj", "kernel", arrange=lambda x: x.T.reshape(c.heads, e, c.width)),
            "mlp_norm": layer("layer_norm2", "scale"),
            "up": layer("mlp.fc1", "kernel", arrange=np.transpose),
            "down": layer("mlp.fc2", "kernel", arrange=np.transpose),
        },
    }


def llama_params(w: dict[str, np.ndarray], c: LlamaConfig) -> dict:
    """From names below `model.`, plus `lm_head.weight`."""

    def layer(name, arrange=lambda x: x):
        return _stack(w, c.layers, "layers.{}." + name, arrange)

    def qkv(name, heads):
        weight = layer(f"self_attn.{name}_proj.weight", lambda x: x.T.reshape(c.width, heads, c.head_size))
        if not c.qkv_bias:
            return {"kernel": weight}
        bias = layer(f"self_attn.{name}_proj.bias", lambda x: x.reshape(heads, c.head_size))
        return {"kernel": weight, "bias": bias}

    params = {
        "embed": {"embedding": w["embed_tokens.weight"]},
        "norm": {"scale": w["norm.weight"]},
        "layers": {
            "attention_norm": {"scale": layer("input_layernorm.weight")},
            "q": qkv("q", c.heads),
            "k": qkv("k", c.kv_heads),
            "v": qkv("v", c.kv_heads),
            "o": {"kernel": layer("self_attn.o_proj.weight", lambda x: x.T.reshape(c.heads, c.head_size, c.width))},
            "mlp_norm": {"scale": layer("post_attention_layernorm.weight")},
            "gate": {"kernel": layer("mlp.gate_proj.weight", np.transpose)},
            "up": {"kernel": layer("mlp.up_proj.weight", np.transpose)},
            "down": {"kernel": layer("mlp.down_proj.weight", np.transpose)},
        },
    }
    return params if c.tied_head else params | {"head": {"kernel": w["lm_head.weight"].T}}


def llava_params(model: LlavaForConditionalGeneration, c: ModelConfig) -> dict:
    w = weights(model, "model.multi_modal_projector.")
    return {
        "vision": clip_params(weights(model, "model.vision_tower."), c.vision),
        "projector": {n: {"kernel": w[f"{n}.weight"].T, "bias": w[f"{n}.bias"]} for n in ("linear_1", "linear_2")},
        "llm": llama_params(weights(model, "model.language_model.") | weights(model), c.llm),
    }
