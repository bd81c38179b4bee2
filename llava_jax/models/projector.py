"""The projector from image features to the language model's embeddings (arXiv 2304.08485 4.1; MLP: 2310.03744)."""

from flax import linen as nn
from jax import random

from llava_jax.config.architectures import ModelConfig, projector_depth
from llava_jax.models.layers import ACTIVATIONS, Linear


class Projector(nn.Module):
    """Linear, then (depth - 1) times an activation and Linear: [B, T, C] -> dtype[B, T, D].

    Weights and biases start from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the original.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        fan_in, width, depth = c.vision.width, c.llm.width, projector_depth(c.projector)
        # Axes alternate as in a tensor-parallel MLP; two layers of one width could not both be named `embed`.
        into, out_of = "vision_embed", "embed" if depth == 1 else "mlp"
        act = ACTIVATIONS[c.projector.partition("x_")[2] or "gelu"]
        for i in range(1, depth + 1):
            if i > 1:
                x, fan_in, into, out_of = act(x), width, "mlp", "embed"
            init = _uniform(fan_in**-0.5)
            layer = Linear(
                "btc,cd->btd", (fan_in, width), (into, out_of), c.dtype, bias=1, init=init,
                name=f"linear_{i}",
            )  # fmt: skip
            x = layer(x)
        return x


def _uniform(bound):
    return lambda key, shape: random.uniform(key, shape, minval=-bound, maxval=bound)
