"""Reads torch's `.bin` files, which are pickles: programs that run when they are loaded.

They are read only with the user's permission, in a subprocess, with torch's weights_only unpickler. The subprocess
converts them to safetensors, which contain no code, and this process reads those. Neither torch nor pickle is imported
here.
"""

import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

from llava_jax.checkpoint.torch_tensors.safetensors_reader import INDEX as SAFE_INDEX
from llava_jax.checkpoint.torch_tensors.safetensors_reader import WEIGHTS as SAFE_WEIGHTS
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.checkpoint.torch_tensors.weight_files import weight_files
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.interrupts import remove_on_stop

WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SUFFIXES = (".bin", ".pt", ".pth")
NO_TORCH = 3  # exit status of the subprocess
# The program of the subprocess; arguments: source .bin, target .safetensors. Before torch 2.10, weights_only could run
# code (CVE-2025-32434, CVE-2026-24747). Tensors are written one at a time from the memory-mapped file.
READER = """
import json, sys, zipfile
try:
    import torch
except ImportError:
    sys.exit(3)
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    sys.exit(3)
source, target = sys.argv[1:]
try:
    found = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
except Exception as e:
    reason = str(e).split("WeightsUnpickler error:")[-1].strip().splitlines() or [type(e).__name__]
    sys.exit(reason[0].split(". ")[0])
if not isinstance(found, dict):
    sys.exit(f"it holds a {type(found).__name__}, not tensors by name")
kinds = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
header, end = {}, 0
for name, x in found.items():
    plain = isinstance(name, str) and isinstance(x, torch.Tensor) and x.layout == torch.strided and x.dtype in kinds
    if not plain:
        sys.exit(f"{name!r} is a {getattr(x, 'dtype', type(x).__name__)}, not a tensor of plain numbers")
    start, end = end, end + x.numel() * x.element_size()
    header[name] = dict(dtype=kinds[x.dtype], shape=list(x.shape), data_offsets=[start, end])
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(target, "xb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for x in found.values():
        file.write(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
"""


def find_weights(folder: Path, stem: str) -> Path | None:
    """Returns `stem`.safetensors, else `stem`.bin, else None. stem: e.g. adapter_model, non_lora_trainables."""
    return next((file for end in (".safetensors", ".bin") if (file := folder / (stem + end)).is_file()), None)


def open_weights(path: Path, allowed: bool) -> TorchFiles:
    """Opens the tensors of a weights file, or of a folder: its safetensors if there are any, else its `.bin` files, see
    `read_pickled`. Beside pytorch_model.bin, only model.safetensors or its index count: others are no whole model."""
    if path.suffix == ".safetensors" or path.is_dir() and _holds_safetensors(path):
        return TorchFiles(path)
    return read_pickled(path, allowed)


def _holds_safetensors(folder: Path) -> bool:
    if any((folder / name).exists() for name in (SAFE_WEIGHTS, SAFE_INDEX)):
        return True
    has_pickles = (folder / WEIGHTS).exists() or (folder / INDEX).exists()
    return not has_pickles and any(folder.glob("*.safetensors"))


def read_pickled(path: Path, allowed: bool) -> TorchFiles:
    """Opens the tensors of a `.bin` file, or of a folder's pytorch_model*.bin, through safetensors copies.

    The copies take as much disk space as the files, in the system's temporary folder (set TMPDIR to change it), and are
    deleted with the reader, at the latest at exit. Files are unpickled one at a time.

    allowed: whether the user permits it; else raises DataError that says why and what to do. Raises ConfigError
    without torch >= 2.10, and DataError for files that are missing, broken, or hold anything but named tensors.
    """
    sources = weight_files(path, WEIGHTS, "pytorch_model*.bin")
    if not sources:
        raise DataError(f"{path} holds no weights: neither .safetensors nor pytorch_model.bin")
    for source in sources:
        if kind := wrong_kind(source):
            raise DataError(f"{source} {kind}")
        if source.suffix not in SUFFIXES:
            raise DataError(f"{source} is no weights file: neither .safetensors, {', '.join(SUFFIXES)} nor a GGUF")
    if not allowed:
        raise DataError(
            f"{sources[0]} is a pickle, a program that runs when it is loaded; convert it to safetensors, or, if you "
            f"trust its source, pass allow_pickle=True or --allow-pickle (it loads only tensors, in a subprocess)"
        )
    folder = Path(tempfile.mkdtemp(prefix="llava_jax-"))
    remove_on_stop(folder)  # a process that a signal ends calls no finalizers
    try:
        for source in sources:
            _copy(source, folder / f"{source.stem}.safetensors")
        files = TorchFiles(path, sorted(folder.iterdir()))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(files, shutil.rmtree, folder, ignore_errors=True)
    return files


def _copy(source: Path, target: Path) -> None:
    # -I: no module next to the weights, in the working directory or on PYTHONPATH can shadow torch.
    command = [sys.executable, "-I", "-c", READER, str(source), str(target)]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    if process.returncode == NO_TORCH:
        raise ConfigError(f"{source} can only be read with torch >= 2.10; install it for {sys.executable}")
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"the subprocess exited with {process.returncode}"]
        hint = f" (in {target.parent}; set TMPDIR to another folder)" if "No space left" in lines[-1] else ""
        raise DataError(f"{source} cannot be read as weights: {lines[-1]}{hint}")
