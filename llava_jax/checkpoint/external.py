"""Opens checkpoints in formats other than ours: detects the model and maps its tensors to parameters.

Tensor names and config.json tell whether a folder holds a whole LLaVA, a CLIP tower or a language model alone.
Releases of the original LLaVA lack their tower: `tower` names a folder with one. LoRA folders, projectors and delta
weights need the model they were made from: `base`. The public entry point is `open_checkpoint`.
"""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np

from llava_jax.checkpoint.gguf_files.config import architecture
from llava_jax.checkpoint.gguf_files.file import GgufFile, is_gguf
from llava_jax.checkpoint.huggingface.config import hf_llava, read_hf_config
from llava_jax.checkpoint.huggingface.fields import group as settings_group
from llava_jax.checkpoint.huggingface.text_config import language_model
from llava_jax.checkpoint.huggingface.vision_config import vision_tower
from llava_jax.checkpoint.llava.config import read_original
from llava_jax.checkpoint.llava.tower import inner_tower
from llava_jax.checkpoint.torch_tensors.dialects import (
    PATCHES,
    TEXT_TOWER,
    check_tensors,
    find_dialect,
    load_parameters,
    torch_mappings,
)
from llava_jax.checkpoint.torch_tensors.name_map import TensorMapping, tensor_names
from llava_jax.checkpoint.torch_tensors.overlays import (
    TensorReader,
    read_lora_config,
    with_delta,
    with_extra,
    with_lora,
)
from llava_jax.checkpoint.torch_tensors.pickle_reader import find_weights, open_weights
from llava_jax.checkpoint.torch_tensors.quantized import refuse_quantized
from llava_jax.checkpoint.torch_tensors.redundant import check_buffers, same_tensor
from llava_jax.config.architectures import LlamaConfig, ModelConfig, VisionConfig, projector_depth
from llava_jax.errors import ConfigError, DataError, renamed_keywords
from llava_jax.output.console import log
from llava_jax.output.files import local_path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class TensorGroup:
    """Modules whose tensors come from one reader. `unused`: regexes of tensor names that need no parameter."""

    modules: tuple[str, ...]
    files: TensorReader
    mappings: dict[str, TensorMapping]
    unused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExternalCheckpoint:
    """An opened checkpoint. `vision`, `llm` and `projector` are None if it lacks that module."""

    path: Path
    dialect: str
    config_json: dict
    vision: VisionConfig | None
    llm: LlamaConfig | None
    projector: str | None
    groups: tuple[TensorGroup, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(module for group in self.groups for module in group.modules)

    @property
    def gguf(self) -> GgufFile | None:
        """The opened file if this is a GGUF, else None."""
        files = self.groups[0].files
        return files if isinstance(files, GgufFile) else None

    def model(self, dtype: str) -> ModelConfig:
        """Returns the config of a whole LLaVA or a lone language model, computing in `dtype`. Raises DataError that
        names the missing modules of anything else."""
        missing = {"vision", "projector", "llm"} - set(self.modules) if self.modules != ("llm",) else ()
        if missing:
            module = self.modules[0]
            raise DataError(
                f"{self.path} is not a whole LLaVA: it has no {' and no '.join(sorted(missing))}; "
                + (
                    "pass the folder of its CLIP tower (tower=, --tower)"
                    if missing == {"vision"}
                    else f"to start a run from it, set --config.load.{module}={self.path}"
                )
            )
        return ModelConfig(
            self.vision, self.llm, self.projector, dtype, dtype, remat="none", unroll=False, attention="xla"
        )

    def dtypes(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, str]:
        """Maps parameter paths to float32 | bfloat16 | float16 without loss; float32 for a tensor that is missing."""
        dtypes = {}
        for path, spec in shapes.items():
            group = next(group for group in self.groups if path.split("/")[0] in group.modules)
            names = tensor_names(group.mappings[path], spec.shape)
            stored = {group.files.dtype(name) for name in names if name in group.files}
            dtypes[path] = stored.pop() if len(stored) == 1 and stored <= {"bfloat16", "float16"} else "float32"
        return dtypes

    @property
    def tower_prefix(self) -> str | None:
        """The prefix of the tower's tensor names, None if the tower and the language model are not in one reader."""
        group = next((group for group in self.groups if {"vision", "llm"} <= set(group.modules)), None)
        return group and group.mappings["vision/cls/embedding"].name.removesuffix("embeddings.class_embedding")

    def load(self, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Reads the parameters of `like` (path -> shape, dtype, sharding), of some modules or of all.

        Raises DataError, before reading, unless the parameters and the tensors of these modules match in names and
        shapes; the message names those that do not. Raises it too for a buffer that differs from what we compute.
        """
        modules = {path.split("/")[0] for path in like}
        if missing := modules - set(self.modules):
            raise DataError(f"{self.path} has no {' and no '.join(sorted(missing))}")
        tied = self.llm is not None and self.llm.tied_head
        groups = [(g, {p: x for p, x in like.items() if p.split("/")[0] in g.modules}) for g in self.groups]
        for group, specs in groups:
            unread = [mapping for path, mapping in group.mappings.items() if path.split("/")[0] not in modules]
            unused = [re.escape(mapping.name).replace(r"\{\}", r"\d+") for mapping in unread]
            shapes = {path: spec.shape for path, spec in specs.items()}
            check_tensors(group.files, group.mappings, shapes, tied, (*group.unused, *unused))
            check_buffers(group.files, self.llm)
        return {
            path: x
            for group, specs in groups
            for path, x in load_parameters(group.files, group.mappings, specs).items()
        }


@renamed_keywords(pickles_allowed="allow_pickle")
def open_external(
    path: Path, tower: Path | None = None, base: Path | None = None, allow_pickle: bool = False
) -> ExternalCheckpoint:
    """Opens a folder of weights with a config.json, one weights file next to a config.json, or a GGUF file.

    The format is detected by content. Reads no weights yet.

    tower: a CLIP folder, for a LLaVA without its own. base: the model to merge a LoRA folder, a projector or delta
    weights with (see `overlays`). Raises DataError for what is missing, broken or unknown, and ConfigError for a
    `tower` or `base` that is not needed.
    """
    if is_gguf(path):
        if tower or base:
            raise ConfigError(f"{path} is a language model in one file; leave out tower and base")
        files = GgufFile(path)
        mappings = torch_mappings(find_dialect(files), files, 0)
        return ExternalCheckpoint(
            path, "gguf", {}, None, architecture(files), None, (TensorGroup(("llm",), files, mappings),)
        )
    files = _open_tensors(path, base, allow_pickle)
    folder = folder_of(path)
    if base and not (folder / "config.json").exists():
        folder = folder_of(base)  # PEFT writes no config.json
    config, where = read_hf_config(folder), str(folder / "config.json")
    refuse_quantized(files, config, where, described=not base)
    dialect = find_dialect(files)
    if tower and dialect.name != "original":
        raise ConfigError(f"{path} needs no separate tower; leave it out")
    if dialect.name == "clip":
        vision, group = _tower(config, where, files, -2, "patch")
        return ExternalCheckpoint(path, dialect.name, config, vision, None, None, (group,))
    if dialect.name == "llm":
        llm = language_model(config, where)
        opened = TensorGroup(("llm",), files, torch_mappings(dialect, files, 0))
        return _with_head(ExternalCheckpoint(path, dialect.name, config, None, llm, None, (opened,)))
    if dialect.name == "original":
        if tower:
            _check_exists(tower)
        tower_files = open_weights(tower, allow_pickle) if tower else None
        return _with_head(_open_original(path, files, config, where, tower_files))
    vision, llm, act = hf_llava(config, where)
    mappings = torch_mappings(dialect, files, depth=2)
    projector, unused = f"mlp2x_{act}", ()
    if act == "linear":
        projector, unused = "linear", _identity_layer_names(files, mappings)
    group = TensorGroup(("vision", "projector", "llm"), files, mappings, unused)
    return _with_head(ExternalCheckpoint(path, dialect.name, config, vision, llm, projector, (group,)))


def _tower(config: dict, where: str, files: TensorReader, layer: int, feature: str) -> tuple[VisionConfig, TensorGroup]:
    """Returns the architecture and the tensors of a CLIP's vision tower. `config`: of the tower or of a whole CLIP."""
    dialect = find_dialect(files)
    if dialect.name != "clip":
        raise DataError(f"{files.path} holds no CLIP tower")
    vision = vision_tower(settings_group(config, "vision_config", where) or config, where, layer, feature)
    return vision, TensorGroup(("vision",), files, torch_mappings(dialect, files, 0), (TEXT_TOWER,))


def _with_head(checkpoint: ExternalCheckpoint) -> ExternalCheckpoint:
    """Returns the checkpoint with the head that its files have, whatever `tie_word_embeddings` says.

    As in transformers 5 (`tie_weights`): a head that differs from the embedding is used, and of two tied tensors one
    may be missing. Reads both if they are there, to compare them.
    """
    group = next(group for group in checkpoint.groups if "llm" in group.modules)
    table, head = (group.mappings[path] for path in ("llm/embed/embedding", "llm/head/kernel"))
    if not checkpoint.llm.tied_head or head.name not in group.files:
        return checkpoint
    if table.name not in group.files:
        mappings = group.mappings | {"llm/embed/embedding": dataclasses.replace(table, name=head.name)}
        groups = [dataclasses.replace(g, mappings=mappings) if g is group else g for g in checkpoint.groups]
        return dataclasses.replace(checkpoint, groups=tuple(groups))
    if same_tensor(group.files, table.name, head.name):
        return checkpoint
    log(
        f"{checkpoint.path}: config.json has tie_word_embeddings, but {head.name} differs from {table.name}: both are "
        "used, as in transformers",
        to_stderr=True,
    )
    return dataclasses.replace(checkpoint, llm=dataclasses.replace(checkpoint.llm, tied_head=False))


def folder_of(path: Path) -> Path:
    """Returns the folder of a checkpoint's config and tokenizer: `path` itself, or the parent of a file."""
    return path if path.is_dir() else path.parent


def _open_tensors(path: Path, base: Path | None, allow_pickle: bool) -> TensorReader:
    """Opens the tensors of `path`, merged with those of `base` if it is given."""
    for folder in (path, base or path):
        _check_exists(folder)
    adapter, projector_file = find_weights(path, "adapter_model"), find_weights(path, "mm_projector")
    if base is None:
        if adapter:
            raise DataError(f"{path} holds a LoRA adapter; pass the model it was trained on (base=, --base)")
        files = open_weights(projector_file or path, allow_pickle)
        if _is_projector(files):
            raise DataError(f"{path} holds a projector alone; pass its language model (base=, --base)")
        return files
    files = open_weights(base, allow_pickle)
    if adapter:
        if extra := find_weights(path, "non_lora_trainables"):  # the original trains its projector with the adapter
            files = with_extra(files, open_weights(extra, allow_pickle))
        return with_lora(files, open_weights(adapter, allow_pickle), read_lora_config(path))
    overlay = open_weights(projector_file or path, allow_pickle)
    return with_extra(files, overlay) if _is_projector(overlay) else with_delta(files, overlay)


def _check_exists(path: Path) -> None:
    local_path(path, "model")
    if path.exists():
        return
    remedy = ""
    if HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        remedy = (
            f". If it is a model of the Hugging Face hub, download it first: hf download {path} --local-dir {path.name}"
        )
    raise DataError(f"{path} does not exist{remedy}")


def _is_projector(files: TensorReader) -> bool:
    names = files.names()
    return bool(names) and all("mm_projector" in name for name in names)


def _identity_layer_names(files: TensorReader, mappings: dict[str, TensorMapping]) -> tuple[str, ...]:
    """Returns regexes of the tensor names of the projector's second layer, which must be the identity. Raises DataError
    otherwise: we have no projector of two linear layers without an activation between them."""
    kernel, bias = mappings["projector/linear_2/kernel"].name, mappings["projector/linear_2/bias"].name
    full = (slice(None),)
    if kernel in files and bias in files:
        weight = files.read(kernel, full * 2)
        square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
        if square and (weight == np.eye(len(weight), dtype=weight.dtype)).all():
            if not files.read(bias, full).any():
                return re.escape(kernel), re.escape(bias)
    raise DataError(f"{files.path}: projector_hidden_act is linear, but {kernel} is not the identity")


def _open_original(
    path: Path, files: TensorReader, config: dict, where: str, tower: TensorReader | None
) -> ExternalCheckpoint:
    dialect = find_dialect(files)
    name, llm, projector, layer, feature = read_original(config, where)
    mappings = torch_mappings(dialect, files, projector_depth(projector))
    has_tower = any(prefix + PATCHES in files for prefix in dialect.vision)
    vision, groups = None, (TensorGroup(("projector", "llm"), files, mappings),)
    if tower:
        folder = folder_of(tower.path)
        tower_config = read_hf_config(folder)
        refuse_quantized(tower, tower_config, str(folder / "config.json"))
        vision, group = _tower(tower_config, str(folder / "config.json"), tower, layer, feature)
        groups = (group, *groups)
    elif has_tower:
        vision = inner_tower(config, where, files, mappings, name, layer, feature)
    if has_tower:  # then `tower` only describes it: the tower may have been trained
        groups = (TensorGroup(("vision", "projector", "llm"), files, mappings),)
    return ExternalCheckpoint(path, dialect.name, config, vision, llm, projector, groups)
