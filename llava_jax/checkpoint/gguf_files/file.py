"""Reads the tensors of a GGUF file of the LLaMA family under Hugging Face's names.

Sources: ggml's `docs/gguf.md` for the format; llama.cpp's `convert_hf_to_gguf.py` for the changes to a checkpoint,
undone here. The package `gguf` (extra `[gguf]`), imported on first use, parses the header and dequantizes blocks.

    file = GgufFile(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))     # a TensorReader in the dialect `llm`
    architecture(file) == LLM["smollm2_135m"]                    # gguf_files.config
    read_tokenizer(file).encode("Hello") == [19556]              # gguf_files.tokenizer
    file.chat_template                                           # text of a Jinja template, or None
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from llava_jax.errors import ConfigError, DataError

MAGIC = b"GGUF"
ARCHITECTURES = ("llama", "qwen2")  # llama.cpp calls a Mistral "llama" too
_MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SUPPORTED_KEYS = set(
    """vocab_size context_length embedding_length block_count feed_forward_length attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.sliding_window rope.dimension_count rope.freq_base rope.scale_linear rope.scaling.type
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned tensor_data_layout""".split()
)
ROPE_FACTORS = "rope_freqs.weight"  # not a parameter: divides the rotary frequencies
_CHUNK = 1 << 21  # values decoded at a time: dequantization needs several times as much temporary memory


@dataclasses.dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]  # in torch's order
    quantization: Any  # gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file
    block: tuple[int, int]  # values per block, bytes per block
    heads: int  # number of heads whose rows llama.cpp interleaved; 0 for none


def is_gguf(path: Path) -> bool:
    """Returns whether the file starts with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


class GgufFile:
    """A TensorReader of float32 values in the dialect `llm`; `metadata` has llama.cpp's keys.

    The file does not stay mapped or open. In a LLaMA's q and k, llama.cpp interleaves the rows of the two halves of
    each head, because its RoPE rotates adjacent pairs; `read` undoes that.

    Raises ConfigError if the package gguf is missing. Raises DataError, naming the file and the key or tensor, for a
    file that is missing, truncated or not a GGUF, for one part of a split model, another architecture, tensors that
    a LLaMA does not have (experts), and quantizations that gguf cannot decode.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata, tensors = _header(path)
        self.arch = self.value("general.architecture", str)
        if self.arch not in ARCHITECTURES:
            raise DataError(f"{path}: general.architecture={self.arch!r} is not one of {', '.join(ARCHITECTURES)}")
        if self.value("split.count", int, 1) > 1:
            raise DataError(f"{path}: split.count={self.metadata['split.count']}: join the files with gguf-split first")
        heads = {"attn_q": self.size("attention.head_count")}
        heads["attn_k"] = self.size("attention.head_count_kv", heads["attn_q"])
        self.rope_factors: np.ndarray | None = None
        self._tensors: dict[str, _Tensor] = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
            block, module, leaf = match.groups() if match else (None, None, None)
            hf_module = (_BLOCK_NAMES if block else _MODEL_NAMES).get(module)
            if name == ROPE_FACTORS:
                self.rope_factors = self._read(name, tensor, (slice(None),))
            elif hf_module and len(tensor.shape) in (1, 2):
                if self.arch == "llama" and module in heads:
                    tensor = dataclasses.replace(tensor, heads=heads[module])
                    if tensor.shape[0] % (2 * tensor.heads):
                        raise DataError(f"{path}: tensor {name}: {tensor.shape[0]} rows for {tensor.heads} heads")
                prefix = f"model.layers.{int(block)}." if block else ""
                self._tensors[f"{prefix}{hf_module}.{leaf}"] = tensor
            elif module != "attn_rot_embd":  # only in old files, and derived from rope_theta
                raise DataError(f"{path}: tensor {name} {tensor.shape} is not part of a known LLaMA")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        return "float32"  # what `read` gives

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part `index` of a tensor as float32. Reads only its rows and decodes a few MB at a time. Raises
        DataError if the file has changed since it was opened."""
        return self._read(name, self._tensors[name], index)

    def _read(self, name: str, tensor: _Tensor, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        shape = (*tensor.shape, 1)[:2]  # a vector is read as a matrix of one column
        (top, bottom, step), (left, right, column_step) = (
            (*index, slice(None))[axis].indices(shape[axis]) for axis in range(2)
        )
        assert step == column_step == 1, (name, index)
        block_length, block_bytes = tensor.block
        row_bytes = shape[1] // block_length * block_bytes
        first_block, end_block = left // block_length, -(-right // block_length)
        head = shape[0] // tensor.heads if tensor.heads else 1
        rows = max(1, _CHUNK // (shape[1] * head)) * head
        values = np.empty((bottom - top, right - left), np.float32)
        for start in range(top // head * head, bottom, rows):
            stop = min(start + rows, -(-bottom // head) * head)
            try:
                offset = tensor.offset + start * row_bytes
                data = np.fromfile(self.path, np.uint8, (stop - start) * row_bytes, offset=offset)
                data = data.reshape(stop - start, row_bytes)[:, first_block * block_bytes : end_block * block_bytes]
            except (OSError, ValueError) as e:
                raise DataError(f"{self.path}: tensor {name} cannot be read; has the file changed? {e}") from None
            blocks = np.ascontiguousarray(data)
            skipped = first_block * block_length
            part = dequantize(blocks, tensor.quantization)[:, left - skipped : right - skipped]
            if tensor.heads:
                pairs = part.reshape(-1, head // 2, 2, part.shape[1])
                part = pairs.swapaxes(1, 2).reshape(part.shape)
            a, b = max(start, top), min(stop, bottom)
            values[a - top : b - top] = part[a - start : b - start]
        return values if len(tensor.shape) == 2 else values[:, 0]

    def value(self, key: str, kind: type, default=None):
        """Returns a metadata value. Raises DataError if it is missing without a default, or not of type `kind`."""
        value = self.metadata.get(key, default)
        if value is None:
            raise DataError(f"{self.path}: metadata key {key} is missing")
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise DataError(f"{self.path}: metadata key {key} holds {str(value)[:40]!r}, not {kind.__name__}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a positive integer from the metadata of the architecture. Raises DataError otherwise."""
        value = self.value(f"{self.arch}.{key}", int, default)
        if value < 1:
            raise DataError(f"{self.path}: metadata key {self.arch}.{key} is {value}, not positive")
        return value

    @property
    def chat_template(self) -> str | None:
        """The chat template (Jinja), None if the file has none."""
        return self.value("tokenizer.chat_template", str, "") or None


def _header(path: Path) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Returns (metadata, tensors by llama.cpp's names). Checks that every tensor lies inside the file."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"{path}: reading GGUF files needs the package gguf: pip install 'llava_jax[gguf]'") from None

    class Reader(gguf.GGUFReader):
        # gguf's own method returns too few bytes at the end of a file; with a wrong length it then loops forever.
        def _get(self, offset, dtype, count=1, override_order=None):
            if int(offset) + int(count) * np.dtype(dtype).itemsize > self.data.size:
                raise ValueError("it is truncated")
            return super()._get(offset, dtype, count, override_order)

    try:
        if not path.is_file() or not is_gguf(path):
            raise DataError(f"{path} " + ("is not a GGUF file" if path.exists() else "does not exist"))
        reader = Reader(path)
        if reader.byte_order != "I":
            raise ValueError("its byte order differs from this machine's")
        metadata = {}
        for key, field in reader.fields.items():
            metadata[key] = field.contents()
            if field.types == [gguf.GGUFValueType.FLOAT32]:
                metadata[key] = float(str(np.float32(metadata[key])))  # 1e-05, not 9.999999747378752e-06
        tensors = {}
        for t in reader.tensors:
            shape, block = tuple(int(n) for n in reversed(t.shape)), gguf.GGML_QUANT_SIZES[t.tensor_type]
            if not all(shape) or not shape or shape[-1] % block[0] or len(shape) == 1 < block[0]:
                raise ValueError(f"tensor {t.name} of shape {shape} does not divide into blocks of {block[0]}")
            if t.n_bytes != math.prod(shape) // block[0] * block[1]:
                raise ValueError(f"tensor {t.name} has the impossible shape {shape}")
            try:
                gguf.dequantize(np.zeros((1, block[1]), np.uint8), t.tensor_type)
            except NotImplementedError:
                raise ValueError(f"tensor {t.name} holds {t.tensor_type.name}, which gguf does not decode") from None
            tensors[t.name] = _Tensor(shape, t.tensor_type, int(t.data_offset), block, 0)
        return metadata, tensors
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, OSError) as e:
        raise DataError(f"{path} is damaged or cannot be read: {e}") from None
