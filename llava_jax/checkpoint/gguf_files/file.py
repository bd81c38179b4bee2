"""A GGUF file of the LLaMA family: its tensors under Hugging Face's names, and its architecture.

Sources: ggml's `docs/gguf.md` for the format; llama.cpp's `convert_hf_to_gguf.py` for what was done to a checkpoint
and is undone here, its `llama-vocab.cpp` for the tokenizers. The package `gguf` (extra `[gguf]`) reads the header and
turns blocks into numbers; it is imported only when a file is opened.

    file = GgufFile(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))     # a reader of tensors, in the dialect `llm`
    architecture(file) == LLM["smollm2_135m"]
    read_tokenizer(file).encode("Hello") == [19556]              # gguf_tokenizer
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
_CHUNK = 1 << 21  # numbers made at a time: the temporaries of decoding are several times as large


@dataclasses.dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]  # as torch has it
    quantization: Any  # gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file
    block: tuple[int, int]  # numbers in a block, bytes of a block
    heads: int  # whose rows llama.cpp has interleaved; 0 for none


def is_gguf(path: Path) -> bool:
    """Whether the file's first bytes are those of a GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


class GgufFile:
    """Names, shapes and parts of a file's tensors as float32 and in the dialect `llm`; `metadata` by llama.cpp's keys.

    No part of the file stays mapped or open. llama.cpp interleaves the two halves of each head in the rows of q and k
    of a LLaMA, because it rotates neighbouring pairs; `read` puts them back.

    Raises ConfigError where the package gguf is missing. Raises DataError, naming the file and the key or tensor, for a
    file that is missing, truncated or no GGUF, one of several files of a split model, another architecture, and tensors
    that are not of a LLaMA (experts) or of a kind that gguf cannot turn into numbers.
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
            elif module != "attn_rot_embd":  # old files keep these frequencies although they follow from the base
                raise DataError(f"{path}: tensor {name} {tensor.shape} is not of a LLaMA that is known")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        return "float32"  # what `read` gives

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a tensor, float32: only its rows are read, and decoded in pieces of some MB.

        Raises DataError where the file has changed meanwhile.
        """
        return self._read(name, self._tensors[name], index)

    def _read(self, name: str, tensor: _Tensor, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        shape = (*tensor.shape, 1)[:2]  # a vector is a matrix with one column
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
        """A value of the metadata. Raises DataError where it is missing (without a default) or of another type."""
        value = self.metadata.get(key, default)
        if value is None:
            raise DataError(f"{self.path}: metadata key {key} is missing")
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise DataError(f"{self.path}: metadata key {key} holds {str(value)[:40]!r}, not {kind.__name__}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive number of the architecture's own metadata."""
        value = self.value(f"{self.arch}.{key}", int, default)
        if value < 1:
            raise DataError(f"{self.path}: metadata key {self.arch}.{key} is {value}")
        return value

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template (Jinja), where the file has one."""
        return self.value("tokenizer.chat_template", str, "") or None


def _header(path: Path) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """(metadata, tensors by llama.cpp's names), every tensor inside the file."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"{path}: reading a GGUF file needs a package: pip install 'llava_jax[gguf]'") from None

    class Reader(gguf.GGUFReader):
        # gguf's own returns fewer bytes than asked for at the end of a file, and a false length then never ends.
        def _get(self, offset, dtype, count=1, override_order=None):
            if int(offset) + int(count) * np.dtype(dtype).itemsize > self.data.size:
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

    try:
        if not path.is_file() or not is_gguf(path):
            raise DataError(f"{path} " + ("is not a GGUF file" if path.exists() else "does not exist"))
        reader = Reader(path)
        if reader.byte_order != "I":
            raise ValueError("its byte order is not this machine's")
        metadata = {}
        for key, field in reader.fields.items():
            metadata[key] = field.contents()
            if field.types == [gguf.GGUFValueType.FLOAT32]:
                metadata[key] = float(str(np.float32(metadata[key])))  # 1e-05, not 9.999999747378752e-06
        tensors = {}
        for t in reader.tensors:
            shape, block = tuple(int(n) for n in reversed(t.shape)), gguf.GGML_QUANT_SIZES[t.tensor_type]
            if not all(shape) or not shape or shape[-1] % block[0] or len(shape) == 1 < block[0]:
                raise ValueError(f"tensor {t.name} of shape {shape} has no whole blocks of {block[0]}")
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
