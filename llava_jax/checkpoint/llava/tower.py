"""The architecture of a vision tower inside an original LLaVA, whose config.json only names it.

The name may be a path on the machine of training. The tensors' shapes give the sizes, but not the number of heads, the
activation and the epsilon; a published tower gives those if the name and the shapes are its own.
"""

import re

from llava_jax.checkpoint.huggingface.vision_config import TOWERS, vision_tower, with_features
from llava_jax.checkpoint.torch_tensors.name_map import TensorMapping
from llava_jax.checkpoint.torch_tensors.overlays import TensorReader
from llava_jax.config.architectures import VisionConfig
from llava_jax.errors import DataError
from llava_jax.output.console import log


def inner_tower(
    config: dict, where: str, files: TensorReader, mappings: dict[str, TensorMapping], name: str, layer: int,
    feature: str,
) -> VisionConfig:  # fmt: skip
    """Returns the architecture of the tower whose tensors are in `files`.

    `vision_config`, which our exports write, comes first. Else it is the published tower that `name` ends with: its
    shapes are checked when it is read. Else, for another name, it is CLIP L/14-336 if the shapes are; that is logged,
    and no other published tower has them. Raises DataError for any other: L/14-224, for example, has twins with other
    activations.
    """
    if config.get("vision_config"):
        return vision_tower(config["vision_config"], f"{where}: vision_config", layer, feature)
    parts = re.split(r"[/\\]|--", name)
    named = next((tower for tower in TOWERS if name == tower or tower.split("/")[1] in parts), None)
    sizes = _sizes(files, mappings)
    if named and sizes == _sizes_of(TOWERS[named]):
        return with_features(TOWERS[named], where, layer, feature)
    unique = "openai/clip-vit-large-patch14-336"
    if not named and sizes == _sizes_of(TOWERS[unique]):
        log(f"{where}: mm_vision_tower={name!r} is not known; its shapes are those of {unique}", to_stderr=True)
        return with_features(TOWERS[unique], where, layer, feature)
    raise DataError(
        f"{where}: mm_vision_tower={name!r}: {'other shapes than' if named else 'not the name of'} a published tower "
        f"(inside: width {sizes[0]}, {sizes[1]} blocks, patches of {sizes[3]} pixels). Pass the folder of the tower it "
        "was made from, whose config.json describes it (tower=, --tower); the tensors inside are used"
    )


def _sizes(files: TensorReader, mappings: dict[str, TensorMapping]) -> tuple[int, ...]:
    """Returns (width, blocks, MLP width, patch size, positions) of the tensors."""
    patches, positions, block = (
        mappings[f"vision/{x}"].name for x in ("patch/kernel", "position/embedding", "layers/up/kernel")
    )
    width, _, patch, _ = files.shape(patches)
    blocks = 0
    while block.format(blocks) in files:
        blocks += 1
    mlp = files.shape(block.format(0))[0] if blocks else 0
    return width, blocks, mlp, patch, files.shape(positions)[0] if positions in files else 0


def _sizes_of(vision: VisionConfig) -> tuple[int, ...]:
    return vision.width, vision.layers, vision.mlp_width, vision.patch_size, vision.patches + 1
