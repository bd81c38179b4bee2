"""The names under which published checkpoints keep a model's tensors, and reading one into sharded parameters.

| dialect  | written by                                                     | projector                          |
|----------|----------------------------------------------------------------|------------------------------------|
| hub      | files of llava-hf, and `save_pretrained` of every transformers | `multi_modal_projector.linear_1.`  |
| memory   | `state_dict()` of transformers >= 4.52, saved as it is         | `model.multi_modal_projector.`     |
| original | LLaVA's own trainer and releases                               | `model.mm_projector.`              |
| clip     | a CLIP vision tower alone, or the whole of CLIP                | -                                  |
| llm      | a LLaMA, Vicuna, Mistral or Qwen2 alone                        | -                                  |

What a checkpoint is, its tensors say, never the name of its folder.
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
    """Prefixes of the modules; None where there is none. `vision` lists the spellings in use."""

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
# Old files keep these although they follow from the config; the text half of CLIP is not part of a LLaVA.
IGNORED = r".*\.rotary_emb\.inv_freq|.*\.position_ids"
IGNORED_IN_CLIP = r"text_model\..*|logit_scale|(visual|text)_projection\.weight"


def find_dialect(files: TorchFiles) -> Dialect:
    """The dialect of the files. Raises DataError where the tensors are of no model that is known."""
    names = files.names()
    for dialect in DIALECTS:
        if dialect.projector and any(name.startswith(dialect.projector) for name in names):
            return dialect
    clip, llm = DIALECTS[-2:]
    if "model.embed_tokens.weight" in files:
        return llm
    if any(prefix + PATCHES in files for prefix in clip.vision):
        return clip
    raise DataError(
        f"{files.path} holds no LLaVA, CLIP tower or LLaMA that is known: its tensors begin with "
        f"{', '.join(names[:3]) or 'nothing'}"
    )


def torch_mappings(
    dialect: Dialect, files: TorchFiles | None, depth: int, tower: str | None = None
) -> dict[str, TensorMapping]:
    """Parameter path -> row with the tensor's whole name, of every module that the dialect knows.

    files: decide between the spellings of the tower; None for `tower`, or without one for the first, which every
    reader knows. depth: layers of the projector.
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
    """Every parameter of `shapes` has its tensors, of the right shape, and no tensor is left over.

    Raises DataError that names the tensors. tied: a head in the file repeats the embedding and is not read, as
    transformers does. unused: regexes of names that need no parameter.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        mapping = mappings[path]
        tensor_shape = torch_shape(mapping.groups, shape[1:] if mapping.stacked else shape)
        expected |= dict.fromkeys(tensor_names(mapping, shape), tensor_shape)
    head = [re.escape(mappings["llm/head/kernel"].name)] if tied and "llm/head/kernel" in mappings else []
    ignored = "|".join([IGNORED, IGNORED_IN_CLIP, *head, *unused])
    stored = {name for name in files.names() if not re.fullmatch(ignored, name)}
    missing, extra = sorted(expected.keys() - stored), sorted(stored - expected.keys())
    if missing or extra:
        raise DataError(f"{files.path} does not fit its config: missing {_some(missing)}, unexpected {_some(extra)}")
    for name, shape in expected.items():
        if files.shape(name) != shape:
            raise DataError(f"{files.path}: tensor {name} has shape {files.shape(name)}, the config asks for {shape}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def load_parameters(
    files: TorchFiles, mappings: dict[str, TensorMapping], like: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The parameters of `like` (path -> shape, dtype, sharding), each device's part read from the files on its own."""
    params = {}
    for path, spec in like.items():
        mapping = mappings[path]

        def part(index, mapping=mapping, spec=spec):
            return read_parameter(mapping, spec.shape, index, spec.dtype, files.read)

        params[path] = jax.make_array_from_callback(spec.shape, spec.sharding, part)
    return params
