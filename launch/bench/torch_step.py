"""The reference train step of bench_step.py: transformers' LlavaForConditionalGeneration with torch's AdamW."""

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig
from llava_jax.models.clip import normalize
from llava_jax.text.token_row import Batch

logging.disable_progress_bar()


def make_model(c: ModelConfig) -> LlavaForConditionalGeneration:
    """Returns a randomly initialized model of our shapes. The image token is the last of the vocabulary."""
    v, m = c.vision, c.llm
    clip = CLIPVisionConfig(
        hidden_size=v.width, intermediate_size=v.mlp_width, num_hidden_layers=v.layers, num_attention_heads=v.heads,
        image_size=v.image_size, patch_size=v.patch_size, hidden_act=v.activation, layer_norm_eps=v.norm_eps,
    )  # fmt: skip
    llm = LlamaConfig(
        vocab_size=m.vocab_size, hidden_size=m.width, intermediate_size=m.mlp_width, num_hidden_layers=m.layers,
        num_attention_heads=m.heads, num_key_value_heads=m.kv_heads, head_dim=m.head_size, rms_norm_eps=m.norm_eps,
        max_position_embeddings=m.max_positions, tie_word_embeddings=m.tied_head, use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": m.rope_base},
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=clip, text_config=llm, image_token_index=m.vocab_size - 1, vision_feature_layer=v.select_layer,
        vision_feature_select_strategy="default", projector_hidden_act="gelu", image_seq_length=v.features,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


class TorchStep:
    """Runs one optimizer step per call, always on the same batch. The loss is the mean over the targets, as ours.

    trains: prefixes of the trained parameters, in float32; the others are frozen, in `dtype`. With bfloat16 it computes
    under autocast. remat: gradient checkpointing of the language model's blocks. attention: eager | sdpa.
    """

    def __init__(self, folder, trains: tuple[str, ...], dtype: str, remat: bool, attention: str, rate: float):
        self.model = LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        )
        self.model.train()
        trained = []
        for name, p in self.model.named_parameters():
            p.requires_grad_(name.startswith(trains))
            if p.requires_grad:
                trained.append(p)
            else:
                p.data = p.data.to(getattr(torch, dtype))
        if remat:
            # No `enable_input_require_grads`: features or embeddings are trained and require gradients already.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.dtype, self.trained = getattr(torch, dtype), trained
        self.optimizer = torch.optim.AdamW(trained, rate, (0.9, 0.999), 1e-8, weight_decay=0.0, fused=True)

    def set_batch(self, batch: Batch) -> None:
        """batch: see `bench_step.make_batch`."""
        c = self.model.config
        ids, mask = batch.tokens, batch.target_mask
        ids = torch.tensor(np.where(ids == IMAGE_TOKEN_ID, c.image_token_id, ids)).long()
        pixels = np.asarray(normalize(batch.images[:, 0])).transpose(0, 3, 1, 2)
        self.inputs = {
            "input_ids": ids,
            "labels": torch.where(torch.tensor(mask), ids, -100),
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.tensor(np.ascontiguousarray(pixels)).to(self.dtype),
        }

    def __call__(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.model(**self.inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
