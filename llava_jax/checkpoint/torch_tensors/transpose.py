"""Between torch's layout of a tensor and ours: transposed in blocks, on several threads, straight into a shard."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llava_jax.checkpoint.torch_tensors.name_map import Groups, TensorMapping, torch_index, torch_shape

BLOCK = 16  # rows: their cache lines fit the fastest cache
BORDER = 64  # bytes
THREADS = min(8, os.cpu_count() or 1)
PIECE = 1 << 22  # numbers
SMALL = 1 << 18  # numbers: one thread is done with them before the others have heard of it


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


def read_parameter(
    row: TensorMapping,
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
