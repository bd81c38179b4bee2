"""One module's weights in a safetensors file: read straight into device shards, written as the flat parameter paths.

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

from llava_jax.checkpoint.gguf_files.file import is_gguf
from llava_jax.checkpoint.open_checkpoint import open_parameters
from llava_jax.checkpoint.tokenizer import BUILT_IN
from llava_jax.checkpoint.torch_tensors.safetensors_reader import FLOATS
from llava_jax.errors import DataError
from llava_jax.output.files import atomic_path


def resolve(path: str) -> Path:
    """`tiny:NAME` is a file that ships with the package, everything else a path of the user's."""
    return BUILT_IN / f"{path.removeprefix('tiny:')}.safetensors" if path.startswith("tiny:") else Path(path)


def load_module(path: str, module: str, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads the parameters of `module` ("vision", "projector" or "llm") from a file that `save_module` wrote, or from
    a checkpoint that holds it (a CLIP, a Vicuna, a whole LLaVA, a GGUF, a run's workdir): see `open_parameters`.

    like: parameter path -> shape, dtype and sharding wanted; only paths below `module/` are read. Each device reads its
    own slice of the file, so no whole tensor is ever in memory where the weights are sharded.
    Raises DataError when the file is missing or broken, or its tensors are not exactly the module's.
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
        raise DataError(f"weights file {file} (for `{module}`) cannot be read: {e}") from None


def _read(tensors, name: str, spec: jax.ShapeDtypeStruct, file: Path) -> jax.Array:
    view = tensors.get_slice(name)
    if tuple(view.get_shape()) != spec.shape:
        raise DataError(f"{file}: tensor {name} has shape {tuple(view.get_shape())}, the model wants {spec.shape}")
    if view.get_dtype() not in FLOATS:
        raise DataError(f"{file}: tensor {name} holds {view.get_dtype()}, not numbers of {', '.join(FLOATS)}")
    return jax.make_array_from_callback(spec.shape, spec.sharding, lambda index: np.asarray(view[index], spec.dtype))


def check_writable(path: str, module: str) -> None:
    """Raises DataError where `save_module` could not write; asked before hours of training, not after them."""
    file = resolve(path)
    folder = next(p for p in file.parents if p.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if file.is_dir() else f"{folder} is not a folder one may write to"
        raise DataError(f"weights file {file} (for `{module}`) cannot be written: {reason}")


def save_module(path: str, module: str, params: dict[str, jax.Array], dtype: str, note: dict[str, str]) -> Path:
    """Writes the parameters below `module/` in `dtype`, atomically, with `note` as the file's metadata.

    Every process must call it: sharded tensors are gathered, one at a time, and process 0 writes.
    Raises DataError where it cannot; a file that was there stays.
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
            # One entry: the library writes several in an order of its own, and equal runs are to give equal files.
            save_file(tensors, partial, metadata={"about": json.dumps({"module": module} | note, sort_keys=True)})
    except (SafetensorError, OSError) as e:
        raise DataError(f"weights file {file} (for `{module}`) cannot be written: {e}") from None
    return file
