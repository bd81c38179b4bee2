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
    found = files.names()
    for dialect in DIALECTS:
        if dialect.projector and any(name.startswith(dialect.projector) for name in found):
            return dialect
    clip, llm = DIALECTS[-2:]
    if "model.embed_tokens.weight" in files:
        return llm
    if any(prefix + PATCHES in files for prefix in clip.vision):
        return clip
    raise DataError(
        f"{files.path} holds no LLaVA, CLIP tower or LLaMA that is known: its tensors begin with "
        f"{', '.join(found[:3]) or 'nothing'}"
    )


def torch_mappings(
    dialect: Dialect, files: TorchFiles | None, depth: int, tower: str | None = None
) -> dict[str, TensorMapping]:
    """Parameter path -> row with the tensor's whole name, of every module that the dialect knows.

    files: decide between the spellings of the tower; None for `tower`, or without one for the first, which every
    reader knows. depth: layers of the projector.
    """
    found = {}
    if dialect.vision:
        prefix = next((p for p in dialect.vision if files and p + PATCHES in files), tower or dialect.vision[0])
        found |= {f"vision/{row.path}": dataclasses.replace(row, name=prefix + row.name) for row in CLIP}
    if dialect.projector:
        style = "llava" if dialect.name == "original" else "hf"
        rows = projector_mappings(depth, style)
        found |= {f"projector/{row.path}": dataclasses.replace(row, name=dialect.projector + row.name) for row in rows}
    if dialect.model:
        for row in LLAMA:
            head, inside = row.name.startswith("lm_head."), row.name.split(".", 1)[1]
            name = (dialect.head if head else dialect.model) + inside
            found[f"llm/{row.path}"] = dataclasses.replace(row, name=name)
    return found


def check_tensors(
    files: TorchFiles, rows: dict[str, TensorMapping], shapes: dict[str, tuple[int, ...]], tied: bool,
    unused: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Every parameter of `shapes` has its tensors, of the right shape, and no tensor is left over.

    Raises DataError that names the tensors. tied: a head in the file repeats the embedding and is not read, as
    transformers does. unused: regexes of names that need no parameter.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        row = rows[path]
        one = torch_shape(row.groups, shape[1:] if row.stacked else shape)
        wanted |= dict.fromkeys(tensor_names(row, shape), one)
    head = [re.escape(rows["llm/head/kernel"].name)] if tied and "llm/head/kernel" in rows else []
    ignored = "|".join([IGNORED, IGNORED_IN_CLIP, *head, *unused])
    left = {name for name in files.names() if not re.fullmatch(ignored, name)}
    missing, extra = sorted(wanted.keys() - left), sorted(left - wanted.keys())
    if missing or extra:
        raise DataError(f"{files.path} does not fit its config: missing {_some(missing)}, unexpected {_some(extra)}")
    for name, shape in wanted.items():
        if files.shape(name) != shape:
            raise DataError(f"{files.path}: tensor {name} has shape {files.shape(name)}, the config asks for {shape}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def load_parameters(
    files: TorchFiles, rows: dict[str, TensorMapping], like: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The parameters of `like` (path -> shape, dtype, sharding), each device's part read from the files on its own."""
    found = {}
    for path, spec in like.items():
        row = rows[path]

        def part(index, row=row, spec=spec):
            return read_parameter(row, spec.shape, index, spec.dtype, files.read)

        found[path] = jax.make_array_from_callback(spec.shape, spec.sharding, part)
    return found
