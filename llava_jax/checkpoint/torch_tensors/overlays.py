"""Merges weights that are published separately from their base model, while they are read.

| files                                               | a tensor becomes   | function     |
|-----------------------------------------------------|--------------------|--------------|
| `mm_projector`, `non_lora_trainables`               | that of the file   | `with_extra` |
| PEFT's LoRA: `adapter_config.json`, `adapter_model` | W + scale * B @ A  | `with_lora`  |
| the original's delta weights (v0, v1.1)             | base + delta       | `with_delta` |

Each function takes TensorReaders (e.g. TorchFiles) and returns one, so they nest. Only the requested part of a tensor
is read or computed. Sums are float32; an unchanged tensor is bit-equal to the base's. A tensor that matches nothing
raises DataError and is never dropped.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from llava_jax.checkpoint.huggingface.fields import count, flag, number
from llava_jax.checkpoint.torch_tensors.dialects import DIALECTS, IGNORED
from llava_jax.errors import DataError
from llava_jax.output.files import read_object

Index = tuple[slice, ...]
ALL = slice(None)
LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Tensors that a file may add to its base, a lone language model.
NEW_MODULES = re.compile(
    r"(?!.*lora_)(model\.)?(mm_projector|multi_modal_projector|vision_tower)\..*(weight|bias|_embedding)"
)
# PEFT uses in-memory module names; for a LLaVA, transformers >= 4.52 uses other names in files.
HUB, MEMORY = DIALECTS[:2]
FILE_PREFIXES = (
    (MEMORY.model, (HUB.model,)), (MEMORY.head, (HUB.head,)), (MEMORY.projector, (HUB.projector,)),
    *((prefix, HUB.vision) for prefix in MEMORY.vision),
)  # fmt: skip
VOCABULARY_TENSORS = ("embed_tokens.weight", "lm_head.weight")  # one row per token: they grow with the vocabulary
# With any of these settings the result differs from W + scale * B @ A.
VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config",
)  # fmt: skip
FLAGS = ("use_dora", "use_qalora", "use_bdlora", "lora_bias")


class TensorReader(Protocol):
    path: Path  # for error messages

    def __contains__(self, name: str) -> bool: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...  # as stored; a merged tensor has its base's
    def read(self, name: str, index: Index) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class OverlaidTensors:
    """The tensors of `base`, overridden or extended by `changed`: name -> (shape, dtype, read)."""

    base: TensorReader
    added: TensorReader
    changed: dict[str, tuple[tuple[int, ...], str, Callable[[Index], np.ndarray]]]

    @property
    def path(self) -> Path:
        return self.added.path

    def __contains__(self, name: str) -> bool:
        return name in self.changed or name in self.base

    def names(self) -> list[str]:
        return sorted(self.changed.keys() | set(self.base.names()))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.changed[name][0] if name in self.changed else self.base.shape(name)

    def dtype(self, name: str) -> str:
        return self.changed[name][1] if name in self.changed else self.base.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        return self.changed[name][2](index) if name in self.changed else self.base.read(name, index)


def with_extra(base: TensorReader, extra: TensorReader) -> OverlaidTensors:
    """Returns `base` with the tensors of `extra` replacing or extending its own.

    extra: a projector (`model.mm_projector.0.weight`, with or without `model.`) or the `non_lora_trainables` of a LoRA
    folder (`base_model.model.model.mm_projector.0.weight`). An embedding or head may have more rows than the base's.
    Raises DataError for a tensor that is neither in the base, with the same shape, nor part of a projector or tower.

    LoRA is applied afterwards, as in the original: with_lora(with_extra(vicuna, non_lora_trainables), adapter, config).
    """
    names = {name: name.removeprefix("base_model.") for name in extra.names()}
    if any(name.startswith("model.model.") for name in names.values()):
        names = {stored: name.removeprefix("model.") for stored, name in names.items()}
    names = {stored: re.sub(r"^(model\.)?mm_projector\.", "model.mm_projector.", n) for stored, n in names.items()}
    return OverlaidTensors(base, extra, _added_tensors(base, extra, names))


def read_lora_config(folder: Path) -> dict:
    """Reads adapter_config.json of a LoRA folder. Raises DataError if it is missing or broken."""
    return read_object(folder / "adapter_config.json", "how the adapter is merged")


def with_lora(base: TensorReader, adapter: TensorReader, config: dict) -> OverlaidTensors:
    """Returns `base` with a LoRA merged in: float32 W + scale * B @ A, where scale is lora_alpha / r, or lora_alpha /
    sqrt(r) with `use_rslora`; B @ A is transposed with `fan_in_fan_out`.

    adapter: `base_model.model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], and for modules_to_save
    full tensors that replace the base's. config: the dict of adapter_config.json.

    Raises DataError for anything but plain LoRA (DoRA, per-module ranks, trained biases, PiSSA, ...), for a tensor
    that matches no module, lacks its counterpart or has another shape, and if targeted layers are missing.

    >>> # r = 2, lora_alpha = 4: one entry of q becomes W[5, 7] + 2 * sum(B[5] * A[:, 7])
    """
    rank, scale, transposed = _read_lora_scaling(config, f"the adapter {adapter.path}")
    lora_pairs: dict[str, dict[str, str]] = {}
    full_tensors = {}
    for stored in adapter.names():
        if match := LORA.fullmatch(stored):
            lora_pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = stored
        else:
            full_tensors[stored] = _stored_name(base, stored.removeprefix("base_model.model."))
    if not lora_pairs:
        raise DataError(f"{adapter.path} holds no LoRA tensors (base_model.model.<module>.lora_A.weight)")
    changed = _added_tensors(base, adapter, full_tensors)
    for module in config.get("modules_to_save") or []:
        if not any(f".{module}." in f".{name}" for name in changed):
            raise DataError(f"{adapter.path} lacks {module}, listed in modules_to_save of adapter_config.json")
    for module, pair in lora_pairs.items():
        name, where = _stored_name(base, module), f"{adapter.path}: tensor {min(pair.values())} cannot be merged"
        if len(pair) == 1:
            raise DataError(f"{where}: its counterpart (lora_A or lora_B) is missing")
        if name in changed:
            raise DataError(f"{where}: the file also has the full tensor {name}")
        if name not in base:
            raise DataError(f"{where}: the base {base.path} has no tensor {name}")
        a, b, shape = pair["A"], pair["B"], base.shape(name)
        expected = tuple(reversed(shape)) if transposed else shape
        if len(shape) != 2 or adapter.shape(b) != (expected[0], rank) or adapter.shape(a) != (rank, expected[1]):
            raise DataError(
                f"{where}: A {adapter.shape(a)} and B {adapter.shape(b)} of rank {rank} do not fit {name} {shape} of "
                f"{base.path}; is it the base that the adapter was trained on?"
            )
        changed[name] = shape, base.dtype(name), _lora_reader(base, name, adapter, a, b, scale, transposed)
    if missing := _missing_targets(base, changed, config):
        raise DataError(f"{adapter.path} has no LoRA for {missing[0]}, which adapter_config.json targets")
    return OverlaidTensors(base, adapter, changed)


def with_delta(base: TensorReader, delta: TensorReader) -> OverlaidTensors:
    """Returns `base` plus the original's delta weights, in float32. Cast to float16, the sum is bit-equal to that of
    the original's `apply_delta`, which adds in float16.

    An embedding or head of the delta may have more rows (added tokens): the base is added to the first ones. Projector
    and tower are copied. Buffers (see `redundant`) of a delta are zero, as the original's `make_delta` leaves them, or
    stay in the result, to be compared. Raises DataError for other tensors that only one of the two has, and for
    different shapes.

    >>> # base [32000, D], delta [32003, D]: row 31999 is base + delta, row 32000 is delta's
    """
    zero = [
        name
        for name in delta.names()
        if re.fullmatch(IGNORED, name) and not delta.read(name, (ALL,) * len(delta.shape(name))).any()
    ]
    names = {name: name for name in delta.names() if name not in zero}
    changed = _added_tensors(base, delta, names)
    for name in base.names():
        if name not in names and not re.fullmatch(IGNORED, name):
            raise DataError(f"{delta.path} has no tensor {name} of the base {base.path}; is it the base of this delta?")
        if name in names:
            changed[name] = delta.shape(name), base.dtype(name), _delta_reader(base, delta, name)
    return OverlaidTensors(base, delta, changed)


def _added_tensors(base: TensorReader, added: TensorReader, names: dict[str, str]) -> dict:
    """Returns name -> (shape, dtype, read) of the tensors of `added`. `names`: stored name -> name in the model."""
    tensors = {}
    for stored, name in names.items():
        shape = added.shape(stored)
        if name in tensors:
            raise DataError(f"{added.path}: tensor {stored} duplicates {name}")
        if name not in base and not NEW_MODULES.fullmatch(name) and not re.fullmatch(IGNORED, name):
            raise DataError(
                f"{added.path}: tensor {stored} belongs neither to the base {base.path} nor to a projector or tower"
            )
        if name in base and shape != base.shape(name):
            base_shape = base.shape(name)
            if not name.endswith(VOCABULARY_TENSORS) or shape[1:] != base_shape[1:] or shape[0] < base_shape[0]:
                wrong = f"has shape {shape}, the base {base.path} has {base_shape}"
                raise DataError(f"{added.path}: tensor {stored} {wrong}")
        tensors[name] = shape, added.dtype(stored), lambda index, stored=stored: added.read(stored, index)
    return tensors


def _read_lora_scaling(config: dict, where: str) -> tuple[int, float, bool]:
    """Returns rank, scale, and whether weights are [in, out] (Conv1D; PEFT saves False for every Linear)."""
    if config.get("peft_type") != "LORA":
        raise DataError(f"{where} is {config.get('peft_type')!r} in adapter_config.json; only LORA can be merged")
    if config.get("bias", "none") != "none":
        raise DataError(f"{where} has trained biases (bias={config['bias']!r}), which PEFT cannot merge without loss")
    name = f"{where}: adapter_config.json: "
    for key in VARIANTS:
        if config.get(key) and (key not in FLAGS or flag(config[key], name + key)):
            raise DataError(f"{where} is not plain LoRA: {key}={config[key]!r} in adapter_config.json; merge it first")
    init = config.get("init_lora_weights", True)
    if str(init).lower() not in ("true", "false", "gaussian", "orthogonal"):
        raise DataError(
            f"{where} used init_lora_weights={init!r}, which also changes the base; save it with PEFT's "
            f"path_initial_model_for_weight_conversion first"
        )
    rank, alpha = count(config.get("r"), name + "r"), number(config.get("lora_alpha"), name + "lora_alpha")
    rslora, transposed = (flag(config.get(key) or False, name + key) for key in ("use_rslora", "fan_in_fan_out"))
    return rank, alpha / (rank**0.5 if rslora else rank), transposed


def _stored_name(base: TensorReader, name: str) -> str:
    """Returns the base's name for the in-memory module name `name`, or `name` if the base has neither."""
    renames = [(old, new) for old, prefixes in FILE_PREFIXES if name.startswith(old) for new in prefixes]
    spellings = [new + name.removeprefix(old) for old, new in renames]
    return next((spelling for spelling in (name, *spellings) if spelling in base), name)


def _missing_targets(base: TensorReader, changed: dict, config: dict) -> list[str]:
    """Returns tensors in adapted layer stacks that the config targets but the file lacks: it is truncated."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return []
    stacks = tuple({match[0] for name in changed if (match := re.match(r".*?\.(?=\d+\.)", name))})
    suffixes = tuple(f".{target}.weight" for target in targets)
    targeted = [name for name in base.names() if name.startswith(stacks) and name.endswith(suffixes)]
    return [name for name in targeted if name not in changed]


def _lora_reader(base: TensorReader, name: str, adapter: TensorReader, a: str, b: str, scale: float, transposed: bool):
    def read(index: Index) -> np.ndarray:
        rows, columns = reversed(index) if transposed else index
        delta = _float32(adapter, b, (rows, ALL)) @ _float32(adapter, a, (ALL, columns))
        return _float32(base, name, index) + np.float32(scale) * (delta.T if transposed else delta)

    return read


def _delta_reader(base: TensorReader, delta: TensorReader, name: str):
    def read(index: Index) -> np.ndarray:
        total = _float32(delta, name, index)
        start, stop, _ = index[0].indices(delta.shape(name)[0])
        stop = min(stop, base.shape(name)[0])
        if start < stop:
            total[: stop - start] += _float32(base, name, (slice(start, stop), *index[1:]))
        return total

    return read


def _float32(reader: TensorReader, name: str, index: Index) -> np.ndarray:
    return reader.read(name, index).astype(np.float32)
