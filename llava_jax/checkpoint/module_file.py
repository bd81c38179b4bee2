"""Loads one module's weights into device shards, and saves them as a safetensors file.

Keys are parameter paths below the module (`layers/q/kernel` for `llm/layers/q/kernel`), values have the stored dtype.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llava_jax.checkpoint.architecture_json import architecture_from_json, architecture_to_json
from llava_jax.checkpoint.built_in import BUILT_IN
from llava_jax.checkpoint.gguf_files.file import is_gguf
from llava_jax.checkpoint.open_checkpoint import open_parameters
from llava_jax.checkpoint.torch_tensors.safetensors_reader import FLOATS
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import atomic_path
from llava_jax.output.json_text import parse_json


def resolve(path: str) -> Path:
    """Returns the file that ships with the package for `tiny:NAME`, else `path` itself."""
    return BUILT_IN / f"{path.removeprefix('tiny:')}.safetensors" if path.startswith("tiny:") else Path(path)


def load_module(path: str, module: str, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads the parameters of `module` ("vision", "projector" or "llm") from a file that `save_module` wrote, or from
    any checkpoint with this module (a CLIP tower, a Vicuna, a whole LLaVA, a GGUF, a workdir), see `open_parameters`.

    like: parameter path -> shape, dtype and sharding; only paths below `module/` are read. Each device reads only its
    own slice of the file, so sharded tensors are never whole in memory.
    Raises DataError if the file is missing or broken, or its tensors do not match the module.
    """
    file = resolve(path)
    if file.is_dir() or is_gguf(file):
        return open_parameters(file).load({p: s for p, s in like.items() if p.startswith(f"{module}/")})
    wanted = {p.removeprefix(f"{module}/"): s for p, s in like.items() if p.startswith(f"{module}/")}
    try:
        with safe_open(file, framework="np") as tensors:
            stored = set(tensors.keys())
            missing, extra = sorted(wanted.keys() - stored), sorted(stored - wanted.keys())
            if missing or extra:
                raise DataError(
                    f"{file} does not fit `{module}`: missing {missing or 'none'}, unexpected {extra or 'none'}"
                )
            return {f"{module}/{name}": _read(tensors, name, spec, file) for name, spec in wanted.items()}
    except FileNotFoundError:
        raise DataError(f"weights file {file} (for `{module}`) does not exist") from None
    except (SafetensorError, OSError) as e:
        raise _unreadable(file, module, e) from None


def module_architecture(file: Path, module: str) -> ModelConfig | None:
    """Returns the architecture of the model that `save_module` wrote a module of, None for a file that records none, as
    earlier versions wrote. Raises DataError if the file cannot be read or holds another module."""
    try:
        with safe_open(file, framework="np") as tensors:
            stored = parse_json((tensors.metadata() or {}).get("about", "{}").encode())
    except (SafetensorError, OSError) as e:
        raise _unreadable(file, module, e) from None
    except ValueError:  # a note of another program
        return None
    if not isinstance(stored, dict) or not isinstance(architecture := stored.get("architecture"), dict):
        return None
    if stored.get("module") != module:
        raise DataError(f"{file} holds the weights of `{stored.get('module')}`, not of `{module}`")
    return architecture_from_json(architecture, str(file))


def _unreadable(file: Path, module: str, fault: Exception) -> DataError:
    clause = wrong_kind(file) or f"is broken or not a safetensors file: {fault}"
    return DataError(f"weights file {file} (for `{module}`) {clause}")


def _read(tensors, name: str, spec: jax.ShapeDtypeStruct, file: Path) -> jax.Array:
    view = tensors.get_slice(name)
    if tuple(view.get_shape()) != spec.shape:
        raise DataError(f"{file}: tensor {name} has shape {tuple(view.get_shape())}, the model needs {spec.shape}")
    if view.get_dtype() not in FLOATS:
        raise DataError(f"{file}: tensor {name} holds {view.get_dtype()}, not one of {', '.join(FLOATS)}")
    return jax.make_array_from_callback(spec.shape, spec.sharding, lambda index: np.asarray(view[index], spec.dtype))


def check_writable(path: str, module: str) -> None:
    """Raises DataError if `save_module` could not write to `path`; called before hours of training."""
    file = resolve(path)
    folder = next(p for p in file.parents if p.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if file.is_dir() else f"{folder} is not a writable folder"
        raise DataError(f"weights file {file} (for `{module}`) cannot be written: {reason}")


def save_module(path: str, module: str, params: dict[str, jax.Array], dtype: str, model: ModelConfig) -> Path:
    """Writes the parameters below `module/` in `dtype`, atomically, with the architecture of `model` in its metadata.

    Every process must call it: sharded tensors are gathered one at a time, and process 0 writes.
    Raises DataError if it cannot write; an existing file is then kept.
    """
    file = resolve(path)
    tensors = {}
    for p in sorted(params):
        if p.startswith(f"{module}/"):
            whole = multihost_utils.process_allgather(params[p].astype(dtype), tiled=True)
            tensors[p.removeprefix(f"{module}/")] = np.ascontiguousarray(whole)
    if jax.process_index() != 0:
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as partial:
            # One entry: safetensors writes several in arbitrary order, and equal runs must give equal files.
            description = {"module": module, "architecture": architecture_to_json(model)}
            save_file(tensors, partial, metadata={"about": json.dumps(description, sort_keys=True)})
    except (SafetensorError, OSError) as e:
        raise DataError(f"weights file {file} (for `{module}`) cannot be written: {e}") from None
    return file
