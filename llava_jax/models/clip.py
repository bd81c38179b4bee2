"""The CLIP vision tower (arXiv 2103.00020) up to the hidden state that LLaVA reads. Axis letters: see layers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from llava_jax.config.architectures import MEAN, STD, ModelConfig
from llava_jax.errors import ConfigError
from llava_jax.models.attention import name_qkv, reference_attention
from llava_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, scan_layers
from llava_jax.models.matmul import dtype_of
from llava_jax.runtime.sharding import constrain


def normalize(images: jax.Array) -> jax.Array:
    """uint8[..., 3] -> float32, (x / 255 - MEAN) / STD. Floating point images count as normalised; unchanged."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


class ClipBlock(nn.Module):
    """Pre-norm attention and MLP, all to all: x [B, T, D] -> [B, T, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c, dtype = self.config.vision, self.config.feature_dtype
        heads = (c.width, c.heads, c.width // c.heads), ("vision_embed", "heads", "head_size")

        y = LayerNorm(c.norm_eps, "vision_embed", name="attention_norm")(x)
        q, k, v = name_qkv(*(Linear("btd,dhe->bthe", *heads, dtype, bias=2, name=n)(y) for n in "qkv"))
        y = reference_attention(q, k, v, None)
        out = (c.heads, c.width // c.heads, c.width), ("heads", "head_size", "vision_embed")
        residual = (2 * c.layers) ** -0.5  # as in CLIP
        x += checkpoint_name(Linear("bthe,hed->btd", *out, dtype, bias=1, init_scale=residual, name="o")(y), "out")

        y = LayerNorm(c.norm_eps, "vision_embed", name="mlp_norm")(x)
        wide = (c.width, c.mlp_width), ("vision_embed", "mlp")
        y = checkpoint_name(Linear("btd,df->btf", *wide, dtype, bias=1, name="up")(y), "up")
        y = constrain(ACTIVATIONS[c.activation](y), "batch", None, "mlp")
        narrow = (c.mlp_width, c.width), ("mlp", "vision_embed")
        x += Linear("btf,fd->btd", *narrow, dtype, bias=1, init_scale=residual, name="down")(y)
        return constrain(x, "batch", None, None), None


class Clip(nn.Module):
    """images -> hidden state `select_layer`, without (`patch`) or with (`cls_patch`) the class token.

    All `layers` blocks and the final norm have parameters, so that a checkpoint converts both ways without loss. The
    blocks after the selected one and the final norm are never computed (LLaVA reads the output of block 23 of 24).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, images):
        """uint8[B, H, W, 3], or floating point and already normalised -> feature_dtype[B, features, D].

        Raises ConfigError for images of another size than image_size, and for an unknown activation, feature or layer.
        """
        c, dtype = self.config.vision, self.config.feature_dtype
        side, p = c.image_size // c.patch_size, c.patch_size
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ConfigError(
                f"images have shape {images.shape[1:]}, the vision tower expects {(c.image_size, c.image_size, 3)}"
            )
        if c.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(f"vision.select_feature {c.select_feature!r} is unknown; use patch or cls_patch")
        if c.activation not in ACTIVATIONS:
            raise ConfigError(f"vision.activation {c.activation!r} is unknown; use {', '.join(ACTIVATIONS)}")
        if not 0 <= c.blocks_used <= c.layers:
            raise ConfigError(f"vision.select_layer {c.select_layer} is not one of the {c.layers + 1} hidden states")

        x = normalize(images)[:, : side * p, : side * p].reshape(-1, side, p, side, p, 3)
        patch = (p, p, 3, c.width), ("pixel", None, None, "vision_embed")
        x = Linear("bypxqc,pqcd->byxd", *patch, dtype, name="patch")(x).reshape(-1, c.patches, c.width)
        cls = Embedding((c.width,), ("vision_embed",), name="cls")().astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        # Larger than the initial variance of the patches (about 1). The share of positions in the features shrinks as
        # a tower learns: from a tenth of this, the features of a young tower hold no positions.
        table = (c.patches + 1, c.width), ("position", "vision_embed")
        x += Embedding(*table, variance=4.0, name="position")().astype(x.dtype)
        x = LayerNorm(c.norm_eps, "vision_embed", name="pre_norm")(x)
        x = constrain(x, "batch", None, None)

        if self.is_initializing():
            x, _ = scan_layers(ClipBlock, self.config, c.layers)(self.config, name="layers")(x)
        elif c.blocks_used:
            blocks = scan_layers(ClipBlock, self.config, c.blocks_used)
            first = lambda params: jax.tree.map(lambda w: w[: c.blocks_used], params)  # noqa: E731
            x, _ = nn.map_variables(blocks, "params", trans_in_fn=first)(self.config, name="layers")(x)
        LayerNorm(c.norm_eps, "vision_embed", name="post_norm")(x[:, 0])  # for its parameters; the result is not used
        return (x if c.select_feature == "cls_patch" else x[:, 1:]).astype(dtype_of(dtype))
