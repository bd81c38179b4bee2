"""Features of images on the device, found by the image's content: each image is encoded once."""

from collections import OrderedDict
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llava_jax.inference.slots import encode_image
from llava_jax.models.llava import Llava
from llava_jax.models.matmul import dtype_of

MAX_IMAGES = 64  # those of small models would take no memory worth mentioning, but time to search


class ImagePool:
    """The most recently used images. All features are in one array, so that a program reads any of them by row."""

    features: jax.Array  # dtype[P * features, D]

    def __init__(self, model: Llava, params: dict, mesh: Mesh, max_bytes: int, at_once: int):
        """at_once: tokens of a part of a prompt, whose images must all fit, even beyond `max_bytes`."""
        c = model.config
        self.model, self.params, self.mesh = model, params, mesh
        self.per_image = c.features or 1
        image_bytes = self.per_image * c.llm.width * dtype_of(c.dtype).itemsize
        most = min(max_bytes // image_bytes, MAX_IMAGES)
        self.capacity = max(most, at_once // self.per_image + 2) if c.vision else 1
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self.clear()

    def clear(self) -> None:
        """Forgets all images."""
        c = self.model.config
        with jax.set_mesh(self.mesh):
            self.features = jnp.zeros((self.capacity * self.per_image, c.llm.width), dtype_of(c.dtype))
        self._numbers.clear()

    def holds(self, digest: bytes) -> bool:
        return digest in self._numbers

    def row(self, digest: bytes) -> int:
        """The row of an image's first feature."""
        self._numbers.move_to_end(digest)
        return self._numbers[digest] * self.per_image

    def encode(self, digest: bytes, pixels: np.ndarray, needed: Collection[bytes]) -> None:
        """Encodes an image, in place of the one that was not used for longest and is not `needed`."""
        if len(self._numbers) < self.capacity:
            number = len(self._numbers)
        else:
            oldest = next(name for name in self._numbers if name not in needed)
            number = self._numbers.pop(oldest)
        with jax.set_mesh(self.mesh):
            row = np.int32(number * self.per_image)
            self.features = encode_image(self.model, self.params, self.features, pixels, row)
        self._numbers[digest] = number
