"""Converts between torch's tensor layout and ours: transposes in blocks, multithreaded, directly into shards."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llava_jax.checkpoint.torch_tensors.name_map import Groups, TensorMapping, torch_index, torch_shape

BLOCK = 16  # rows: their cache lines fit in the L1 cache
ALIGNMENT = 64  # bytes
THREADS = min(8, os.cpu_count() or 1)
CHUNK = 1 << 22  # values per read
SINGLE_THREAD_SIZE = 1 << 18  # values: for fewer, starting threads takes longer than the copy


def from_torch(groups: Groups, shape: tuple[int, ...], value: np.ndarray) -> np.ndarray:
    """Returns a view of a torch tensor, or of the part that `torch_index` selects, in our layout with `shape`."""
    order = [axis for group in groups for axis in group]
    return value.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def to_torch(groups: Groups, value: np.ndarray) -> np.ndarray:
    """Returns one of our parameters, or one layer of it, as a contiguous array in torch's layout."""
    shape = torch_shape(groups, value.shape)
    if _is_transposed(groups):
        transposed = np.empty(shape, value.dtype)
        with ThreadPoolExecutor(THREADS) as pool:
            _transpose(np.ascontiguousarray(value).reshape(shape[::-1]), transposed, pool)
        return transposed
    order = [axis for group in groups for axis in group]
    return np.ascontiguousarray(value.transpose(order)).reshape(shape)


def _is_transposed(groups: Groups) -> bool:
    """Returns whether torch's tensor is a matrix and ours, with its axes flattened, is its transpose."""
    return len(groups) == 2 and groups[1] + groups[0] == tuple(range(len(groups[0] + groups[1])))


def _transpose(matrix: np.ndarray, target: np.ndarray, pool: ThreadPoolExecutor) -> None:
    """Computes target[:] = matrix.T, five times as fast. numpy reads a column at a time, so one value per cache line.
    The lines of BLOCK rows stay in the cache until all of their values are read."""
    integer = f"u{matrix.itemsize}"  # numpy copies integers, but not bfloat16, in one loop
    matrix, target = matrix.view(integer), target.view(integer)
    rows_per_thread = -(-len(matrix) // (THREADS * BLOCK)) * BLOCK

    def transpose_rows(start: int) -> None:
        for i in range(start, min(start + rows_per_thread, len(matrix)), BLOCK):
            target[:, i : i + BLOCK] = matrix[i : i + BLOCK].T

    # numpy releases the GIL while it copies
    starts = range(0, len(matrix), rows_per_thread)
    list((pool.map if matrix.size > SINGLE_THREAD_SIZE else map)(transpose_rows, starts))


def aligned_empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns np.empty aligned to 64 bytes: a CPU device uses aligned memory directly and copies other memory."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def read_parameter(
    mapping: TensorMapping,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
    dtype,
    read_tensor: Callable[[str, tuple[slice, ...]], object],
) -> np.ndarray:
    """Reads the part `index` of our parameter of `shape`, in `dtype`. read_tensor(name, index) reads a part of a torch
    tensor; no more than the requested part is in memory."""
    inner_shape, inner_index = (shape[1:], index[1:]) if mapping.stacked else (shape, index)
    part_shape = tuple(len(range(*s.indices(n))) for s, n in zip(inner_index, inner_shape, strict=True))
    torch_part = torch_index(mapping.groups, inner_shape, inner_index)
    is_transposed = _is_transposed(mapping.groups)
    if not (mapping.stacked or is_transposed):
        tensor = read_tensor(mapping.name, torch_part)
        return np.asarray(from_torch(mapping.groups, part_shape, tensor), dtype)  # no second copy of the embeddings
    layers = range(*index[0].indices(shape[0])) if mapping.stacked else [0]
    row_chunks = _row_chunks(torch_part) if is_transposed else [torch_part[0]]
    requests = [(slot, (chunk, *torch_part[1:])) for slot in range(len(layers)) for chunk in row_chunks]
    values = aligned_empty((len(layers), *part_shape), dtype)

    def fetch(slot: int, tensor_part: tuple[slice, ...]) -> np.ndarray:
        return read_tensor(mapping.name.format(layers[slot]), tensor_part)

    # The next chunk is read while this one is transposed. New threads for every chunk would take 10 % longer.
    with ThreadPoolExecutor(1) as read_pool, ThreadPoolExecutor(THREADS) as copy_pool:
        next_read = read_pool.submit(fetch, *requests[0])
        for n, (slot, tensor_part) in enumerate(requests):
            value = next_read.result()
            if n + 1 < len(requests):
                next_read = read_pool.submit(fetch, *requests[n + 1])
            if is_transposed:
                matrix = values[slot].reshape(value.shape[1], -1)
                first = tensor_part[0].start - torch_part[0].start
                _transpose(np.asarray(value, dtype), matrix[:, first : first + len(value)], copy_pool)
            else:
                values[slot] = from_torch(mapping.groups, part_shape, value)
    return values if mapping.stacked else values[0]


def _row_chunks(torch_part: tuple[slice, ...]) -> list[slice]:
    """Splits the rows of a matrix into chunks. Memory for larger chunks would be newly allocated and cleared by the
    system each time; this size is reused."""
    rows, columns = torch_part
    step = max(BLOCK, CHUNK // (columns.stop - columns.start))
    return [slice(first, min(first + step, rows.stop)) for first in range(rows.start, rows.stop, step)]
