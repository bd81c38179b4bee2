"""LLaVA: CLIP -> projector -> LLaMA (arXiv 2304.08485); image features replace the tokens IMAGE_TOKEN_ID."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig
from llava_jax.models.cache import KVCache
from llava_jax.models.clip import Clip
from llava_jax.models.llama import Llama
from llava_jax.models.projector import Projector


def merge(tokens: jax.Array, text: jax.Array, features: jax.Array) -> jax.Array:
    """Replaces the placeholders of a row by its features, in order. Static shapes; no row reads another row's features.

    tokens int32[B, T], text [B, T, D] (ignored at placeholders), features [B, M, D] -> [B, T, D]. Surplus features are
    dropped; placeholders beyond M become zeros.

    tokens (-200 as *)  5 * * 6 *   text  a . . b .   features  p q r     result  a p q b r
                        * 7 8 9 9         . c d e e             s t u             s c d e e
    """
    placeholder = tokens == IMAGE_TOKEN_ID
    nth = jnp.cumsum(placeholder, axis=1) - 1
    count = features.shape[1]
    text = jnp.where(placeholder[..., None], 0, text)
    if count == 0:
        return text
    picked = jnp.take_along_axis(features, jnp.clip(nth, 0, count - 1)[..., None], axis=1)
    return jnp.where((placeholder & (nth < count))[..., None], picked, text)


class Llava(nn.Module):
    """Parameters: `vision`, `projector`, `llm`. `init` creates all of them, with or without images in its input. If the
    config has no vision tower there is only `llm`, and images have N = 0."""

    config: ModelConfig

    def setup(self):
        if self.config.vision:
            self.vision = Clip(self.config)
            self.projector = Projector(self.config)
        self.llm = Llama(self.config)

    def encode_images(self, images):
        """uint8[B, N, H, W, 3], or floating point and normalised -> dtype[B, N * features, D].

        N = 0 skips the tower. The tower computes in feature_dtype, the projector in dtype.
        """
        b, n = images.shape[:2]
        c = self.config
        if n == 0 and c.vision and self.is_initializing():
            self.encode_images(jnp.zeros((b, 1, *images.shape[2:]), images.dtype))
        if n == 0:
            return jnp.zeros((b, 0, c.llm.width), c.dtype)
        features = self.projector(self.vision(images.reshape(b * n, *images.shape[2:])))
        return features.reshape(b, n * c.features, c.llm.width)

    def embed(self, tokens, images):
        """tokens int32[B, T] with IMAGE_TOKEN_ID where features go -> dtype[B, T, D]."""
        text = self.llm.embed(jnp.where(tokens == IMAGE_TOKEN_ID, 0, tokens))
        return merge(tokens, text, self.encode_images(images))

    def hidden(self, tokens, images, positions, segment_ids, cache: KVCache | None = None):
        """A batch's arrays -> (final states [B, T, D], cache), see Llama.hidden; a decoding step has N = 0 images."""
        return self.llm.hidden(self.embed(tokens, images), positions, segment_ids, cache)

    def hidden_of_features(self, tokens, features, positions, segment_ids, cache: KVCache):
        """`hidden` for images that are encoded already: features dtype[B, T, D], read where tokens are
        IMAGE_TOKEN_ID."""
        is_image = (tokens == IMAGE_TOKEN_ID)[..., None]
        text = self.llm.embed(jnp.where(tokens == IMAGE_TOKEN_ID, 0, tokens))
        return self.llm.hidden(jnp.where(is_image, features.astype(text.dtype), text), positions, segment_ids, cache)

    def logits(self, hidden):
        """[B, T, D] -> float32[B, T, V]."""
        return self.llm.logits(hidden)

    def __call__(self, tokens, images, positions, segment_ids):
        """tokens, positions, segment_ids int32[B, T]; images uint8[B, N, H, W, 3] -> float32[B, T, V]."""
        return self.logits(self.hidden(tokens, images, positions, segment_ids)[0])
