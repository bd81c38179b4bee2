"""Detects the naming scheme (dialect) of a PyTorch checkpoint and reads it into sharded parameters.

| dialect  | written by                                                     | projector                          |
|----------|----------------------------------------------------------------|------------------------------------|
| hub      | llava-hf's files, and `save_pretrained` of any transformers    | `multi_modal_projector.linear_1.`  |
| memory   | `state_dict()` of transformers >= 4.52, saved unchanged        | `model.multi_modal_projector.`     |
| original | LLaVA's own trainer and releases                               | `model.mm_projector.`              |
| clip     | a CLIP vision tower alone, or a whole CLIP                     | -                                  |
| llm      | a LLaMA, Vicuna, Mistral or Qwen2 alone                        | -                                  |

The tensors' names decide, never the name of the folder.
"""

import dataclasses
import re

import jax

from llava_jax.checkpoint.torch_tensors.name_map import (
    CLIP,
    LLAMA,
    TensorMapping,
    projector_mappings,
    tensor_names,
    torch_shape,
)
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.checkpoint.torch_tensors.transpose import read_parameter
from llava_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Name prefixes of the modules, None for a missing module. `vision` lists all spellings in use."""

    name: str
    vision: tuple[str, ...] | None
    projector: str | None
    model: str | None  # the decoder without its head
    head: str | None


DIALECTS = (
    Dialect(
        "hub", ("vision_tower.vision_model.", "vision_tower."), "multi_modal_projector.", "language_model.model.",
        "language_model.lm_head.",
    ),
    Dialect(
        "memory", ("model.vision_tower.vision_model.", "model.vision_tower."), "model.multi_modal_projector.",
        "model.language_model.", "lm_head.",
    ),
    Dialect(
        "original", ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
        "model.mm_projector.", "model.", "lm_head.",
    ),
    Dialect("clip", ("vision_model.", ""), None, None, None),
    Dialect("llm", None, None, "model.", "lm_head."),
)  # fmt: skip
PATCHES = "embeddings.patch_embedding.weight"
# Old files contain these buffers, which are derived from the config: `redundant.check_buffers` compares them.
FREQUENCIES, POSITIONS = r".*\.rotary_emb\.inv_freq", r"(?!text_model\.)(.*\.)?position_ids"
IGNORED = f"{FREQUENCIES}|{POSITIONS}"
# A whole CLIP has a text tower too, which is not part of a LLaVA.
TEXT_TOWER = r"text_model\..*|logit_scale|(visual|text)_projection\.weight"


def find_dialect(files: TorchFiles) -> Dialect:
    """Returns the dialect of the files. Raises DataError if the tensors belong to no known model."""
    names = files.names()
    for dialect in DIALECTS:
        if dialect.projector and any(name.startswith(dialect.projector) for name in names):
            return dialect
    clip, llm = DIALECTS[-2:]
    if "model.embed_tokens.weight" in files or "model.norm.weight" in files:
        return llm
    if any(prefix + PATCHES in files for prefix in clip.vision):
        return clip
    raise DataError(
        f"{files.path} holds no known LLaVA, CLIP tower or LLaMA: its tensors start with "
        f"{', '.join(names[:3]) or 'nothing'}"
    )


def torch_mappings(
    dialect: Dialect, files: TorchFiles | None, depth: int, tower: str | None = None
) -> dict[str, TensorMapping]:
    """Returns parameter path -> mapping with the full tensor name, for every module of the dialect.

    files: decide the spelling of the tower's prefix. None: `tower`, by default the first spelling, which every reader
    knows. depth: number of layers of the projector.
    """
    mappings = {}
    if dialect.vision:
        prefix = next((p for p in dialect.vision if files and p + PATCHES in files), tower or dialect.vision[0])
        mappings |= {f"vision/{m.path}": dataclasses.replace(m, name=prefix + m.name) for m in CLIP}
    if dialect.projector:
        style = "llava" if dialect.name == "original" else "hf"
        layers = projector_mappings(depth, style)
        mappings |= {f"projector/{m.path}": dataclasses.replace(m, name=dialect.projector + m.name) for m in layers}
    if dialect.model:
        for m in LLAMA:
            head, inside = m.name.startswith("lm_head."), m.name.split(".", 1)[1]
            name = (dialect.head if head else dialect.model) + inside
            mappings[f"llm/{m.path}"] = dataclasses.replace(m, name=name)
    return mappings


def check_tensors(
    files: TorchFiles, mappings: dict[str, TensorMapping], shapes: dict[str, tuple[int, ...]], tied: bool,
    unused: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Checks that every parameter of `shapes` has its tensors with matching shapes, and that no tensor is left over.

    tied: the head may be present, because it repeats the embedding. unused: regexes of tensor names that need no
    parameter. The caller has compared these tensors, see `redundant`. Raises DataError that names the tensors.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        mapping = mappings[path]
        tensor_shape = torch_shape(mapping.groups, shape[1:] if mapping.stacked else shape)
        expected |= dict.fromkeys(tensor_names(mapping, shape), tensor_shape)
    head = [re.escape(mappings["llm/head/kernel"].name)] if tied and "llm/head/kernel" in mappings else []
    ignored = "|".join([IGNORED, *head, *unused])
    stored = {name for name in files.names() if name in expected or not re.fullmatch(ignored, name)}
    missing, extra = sorted(expected.keys() - stored), sorted(stored - expected.keys())
    if missing or extra:
        raise DataError(f"{files.path} does not fit its config: missing {_some(missing)}, unexpected {_some(extra)}")
    for name, shape in expected.items():
        if files.shape(name) != shape:
            raise DataError(f"{files.path}: tensor {name} has shape {files.shape(name)}, the config expects {shape}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def load_parameters(
    files: TorchFiles, mappings: dict[str, TensorMapping], like: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads the parameters of `like` (path -> shape, dtype, sharding); for each device only its own part."""
    params = {}
    for path, spec in like.items():
        mapping = mappings[path]

        def part(index, mapping=mapping, spec=spec):
            return read_parameter(mapping, spec.shape, index, spec.dtype, files.read)

        params[path] = jax.make_array_from_callback(spec.shape, spec.sharding, part)
    return params
