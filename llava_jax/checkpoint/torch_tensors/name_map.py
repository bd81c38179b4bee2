"""Which tensor of a torch checkpoint is which parameter of ours: one row per tensor, read in both directions.

Ours are stacked over the layers and keep heads and head size apart; torch's `Linear` holds [out, in] and has one tensor
per layer. A row's `groups` says, for each axis of the torch tensor, which of our axes (without the layer axis) make it
up: ((1, 2), (0,)) reads our [D, H, E] as torch's [H * E, D]. Sources: `modeling_clip.py`, `modeling_llama.py` and
`modeling_llava.py` of transformers; `llava/model` of the original.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Groups = tuple[tuple[int, ...], ...]
LINEAR: Groups = ((1,), (0,))
HEADS_IN: Groups = ((1, 2), (0,))  # q, k, v
HEADS_OUT: Groups = ((2,), (0, 1))  # o
HEADS_BIAS: Groups = ((0, 1),)
CONVOLUTION: Groups = ((3,), (2,), (0,), (1,))
VECTOR: Groups = ((0,),)
TABLE: Groups = ((0,), (1,))
BLOCK = 16  # rows: their cache lines fit the fastest cache
BORDER = 64  # bytes
THREADS = min(8, os.cpu_count() or 1)
PIECE = 1 << 22  # numbers
SMALL = 1 << 18  # numbers: one thread is done with them before the others have heard of it


@dataclasses.dataclass(frozen=True)
class Row:
    """`path`: ours below the module. `name`: torch's below the module's prefix, {} for the number of the layer."""

    path: str
    name: str
    groups: Groups

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")


def _both(path: str, name: str, kernel: Groups, bias: Groups = VECTOR, kernel_name: str = "kernel") -> tuple[Row, ...]:
    return Row(f"{path}/{kernel_name}", f"{name}.weight", kernel), Row(f"{path}/bias", f"{name}.bias", bias)


def _norm(path: str, name: str) -> tuple[Row, ...]:
    return _both(path, name, VECTOR, kernel_name="scale")


CLIP = (
    Row("cls/embedding", "embeddings.class_embedding", VECTOR),
    Row("patch/kernel", "embeddings.patch_embedding.weight", CONVOLUTION),
    Row("position/embedding", "embeddings.position_embedding.weight", TABLE),
    *_norm("pre_norm", "pre_layrnorm"),  # misspelt in every published file
    *_norm("post_norm", "post_layernorm"),
    *_norm("layers/attention_norm", "encoder.layers.{}.layer_norm1"),
    *_both("layers/q", "encoder.layers.{}.self_attn.q_proj", HEADS_IN, HEADS_BIAS),
    *_both("layers/k", "encoder.layers.{}.self_attn.k_proj", HEADS_IN, HEADS_BIAS),
    *_both("layers/v", "encoder.layers.{}.self_attn.v_proj", HEADS_IN, HEADS_BIAS),
    *_both("layers/o", "encoder.layers.{}.self_attn.out_proj", HEADS_OUT),
    *_norm("layers/mlp_norm", "encoder.layers.{}.layer_norm2"),
    *_both("layers/up", "encoder.layers.{}.mlp.fc1", LINEAR),
    *_both("layers/down", "encoder.layers.{}.mlp.fc2", LINEAR),
)
LLAMA = (
    Row("embed/embedding", "model.embed_tokens.weight", TABLE),
    Row("norm/scale", "model.norm.weight", VECTOR),
    Row("head/kernel", "lm_head.weight", LINEAR),
    Row("layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", VECTOR),
    *_both("layers/q", "model.layers.{}.self_attn.q_proj", HEADS_IN, HEADS_BIAS),
    *_both("layers/k", "model.layers.{}.self_attn.k_proj", HEADS_IN, HEADS_BIAS),
    *_both("layers/v", "model.layers.{}.self_attn.v_proj", HEADS_IN, HEADS_BIAS),
    Row("layers/o/kernel", "model.layers.{}.self_attn.o_proj.weight", HEADS_OUT),
    Row("layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", VECTOR),
    Row("layers/gate/kernel", "model.layers.{}.mlp.gate_proj.weight", LINEAR),
    Row("layers/up/kernel", "model.layers.{}.mlp.up_proj.weight", LINEAR),
    Row("layers/down/kernel", "model.layers.{}.mlp.down_proj.weight", LINEAR),
)


def projector_rows(depth: int, dialect: str) -> tuple[Row, ...]:
    """Rows of a projector of `depth` Linear layers. dialect `hf`: linear_1, linear_2; `llava`, the original's: the
    places of the layers in a torch Sequential, 0, 2, 4 (GELU lies between), or nothing for a lone layer."""
    found = []
    for i in range(1, depth + 1):
        place = f"linear_{i}" if dialect == "hf" else f"{2 * i - 2}"
        name = place if dialect == "hf" or depth > 1 else ""
        found += [
            Row(f"linear_{i}/kernel", f"{name}.weight".removeprefix("."), LINEAR),
            Row(f"linear_{i}/bias", f"{name}.bias".removeprefix("."), VECTOR),
        ]
    return tuple(found)


def torch_shape(groups: Groups, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The torch tensor's shape for our `shape` (without the layer axis).

    >>> torch_shape(HEADS_IN, (4096, 32, 128))
    (4096, 4096)
    """
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def torch_index(groups: Groups, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, ...]:
    """The part of the torch tensor that holds `index` of ours. Of several axes that make one up, only the first may
    be split (heads are sharded, a head's inside never is)."""
    found = []
    for group in groups:
        first, *rest = group
        whole = math.prod(shape[axis] for axis in rest)
        assert all(index[axis].indices(shape[axis]) == (0, shape[axis], 1) for axis in rest), (groups, index)
        start, stop, step = index[first].indices(shape[first])
        assert step == 1
        found.append(slice(start * whole, stop * whole))
    return tuple(found)


def to_ours(groups: Groups, shape: tuple[int, ...], value: np.ndarray) -> np.ndarray:
    """A torch tensor, or the part of one that `torch_index` names, as our array of `shape` (that part's); a view."""
    order = [axis for group in groups for axis in group]
    return value.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def to_torch(groups: Groups, value: np.ndarray) -> np.ndarray:
    """One of our parameters, or one layer of it, in torch's layout, contiguous."""
    shape = torch_shape(groups, value.shape)
    if _is_turned(groups):
        found = np.empty(shape, value.dtype)
        with ThreadPoolExecutor(THREADS) as pool:
            _turn(np.ascontiguousarray(value).reshape(shape[::-1]), found, pool)
        return found
    order = [axis for group in groups for axis in group]
    return np.ascontiguousarray(value.transpose(order)).reshape(shape)


def _is_turned(groups: Groups) -> bool:
    """Whether torch's tensor is a matrix and ours, its last axes taken together, is the same one turned around."""
    return len(groups) == 2 and groups[1] + groups[0] == tuple(range(len(groups[0] + groups[1])))


def _turn(matrix: np.ndarray, target: np.ndarray, pool: ThreadPoolExecutor) -> None:
    """target[:] = matrix.T, five times as fast: numpy reads a column at a time, and of each cache line a single number.
    Of BLOCK rows, the lines stay in the cache until all of their numbers are read."""
    number = f"u{matrix.itemsize}"  # numpy knows how to copy integers, but not bfloat16, in one loop
    matrix, target = matrix.view(number), target.view(number)

    share = -(-len(matrix) // (THREADS * BLOCK)) * BLOCK  # rows a thread

    def turn(start: int) -> None:
        for i in range(start, min(start + share, len(matrix)), BLOCK):
            target[:, i : i + BLOCK] = matrix[i : i + BLOCK].T

    # numpy lets the others run while it copies
    list((pool.map if matrix.size > SMALL else map)(turn, range(0, len(matrix), share)))


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """np.empty, but on a border of 64 bytes: from there a CPU device takes the memory over, else it copies it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + BORDER, np.uint8)
    start = -memory.ctypes.data % BORDER
    return memory[start : start + size].view(dtype).reshape(shape)


def names(row: Row, shape: tuple[int, ...]) -> list[str]:
    """The torch tensors that make up our parameter of `shape`: one, or one per layer."""
    return [row.name.format(i) for i in range(shape[0])] if row.stacked else [row.name]


def read(
    row: Row,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
    dtype,
    tensor: Callable[[str, tuple[slice, ...]], object],
) -> np.ndarray:
    """The part `index` of our parameter of `shape`, in `dtype`.

    tensor(name, index) reads that part of a torch tensor; nothing beyond the part is ever in memory.
    """
    inner, inside = (shape[1:], index[1:]) if row.stacked else (shape, index)
    part = tuple(len(range(*s.indices(n))) for s, n in zip(inside, inner, strict=True))
    where = torch_index(row.groups, inner, inside)
    is_turned = _is_turned(row.groups)
    if not (row.stacked or is_turned):
        return np.asarray(to_ours(row.groups, part, tensor(row.name, where)), dtype)  # no second copy of the embeddings
    layers = range(*index[0].indices(shape[0])) if row.stacked else [0]
    rows = _pieces(where) if is_turned else [where[0]]
    asked = [(i, (piece, *where[1:])) for i in range(len(layers)) for piece in rows]
    found = empty((len(layers), *part), dtype)

    def fetch(i: int, at: tuple[slice, ...]) -> np.ndarray:
        return tensor(row.name.format(layers[i]), at)

    # The next piece is read while this one is turned around. Threads of their own for every piece would cost a tenth.
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(THREADS) as hands:
        coming = ahead.submit(fetch, *asked[0])
        for n, (i, at) in enumerate(asked):
            value = coming.result()
            if n + 1 < len(asked):
                coming = ahead.submit(fetch, *asked[n + 1])
            if is_turned:
                matrix = found[i].reshape(value.shape[1], -1)
                first = at[0].start - where[0].start
                _turn(np.asarray(value, dtype), matrix[:, first : first + len(value)], hands)
            else:
                found[i] = to_ours(row.groups, part, value)
    return found if row.stacked else found[0]


def _pieces(where: tuple[slice, ...]) -> list[slice]:
    """The rows of a matrix, in pieces. Larger ones would come into new memory each, which the system must find and
    clear; memory of this size is used again."""
    rows, columns = where
    step = max(BLOCK, PIECE // (columns.stop - columns.start))
    return [slice(first, min(first + step, rows.stop)) for first in range(rows.start, rows.stop, step)]
