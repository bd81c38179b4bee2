"""Counts the FLOPs of a compiled program: its matmuls, and its attention kernels, which report none.

These are hardware FLOPs. `models.flops.model_flops` has the model FLOPs: what the model needs, without recomputation.
"""

import dataclasses
import math
import re

from llava_jax.planning.hlo.parse import Array, Instruction, Program

PRODUCTS = ("convolution", "dot")  # the TPU compiler writes most matmuls as convolutions
KERNEL = "tpu_custom_call"  # Pallas, compiled by Mosaic


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One attention kernel. `flops`: of one run, for the half of the scores that a causal mask leaves."""

    name: str
    flops: float
    padded: float  # `flops` with heads padded to whole registers of 128, as the MXU computes them
    times: int


def product_flops(program: Program) -> float:
    """FLOPs of all matmuls and convolutions that one device runs."""
    total = 0.0
    for computation, instruction, times in program.walk():
        inside = program.inside(instruction) if instruction.opcode == "fusion" else [(computation, instruction)]
        total += sum(times * _flops(program, c, i) for c, i in inside if i.opcode in PRODUCTS)
    return total


def has_product(program: Program, instruction: Instruction) -> bool:
    """Whether a fusion or instruction runs on the MXU."""
    if instruction.opcode == "fusion":
        return any(i.opcode in PRODUCTS for _, i in program.inside(instruction))
    return instruction.opcode in PRODUCTS


def _flops(program: Program, computation: str, product: Instruction) -> float:
    result = product.results[0]
    left, right = (program.operand(computation, product, i).results[0] for i in (0, 1))
    if product.opcode == "dot":
        summed = math.prod(left.shape[d] for d in product.dimensions("lhs_contracting_dims"))
        return 2.0 * math.prod(result.shape) * summed
    return _convolution_flops(product, left, right, result)


def _convolution_flops(product: Instruction, left: Array, right: Array, result: Array) -> float:
    """FLOPs of a convolution without the window positions outside of the input. The compiler writes batched and
    transposed matmuls as convolutions with windows larger than the input, which consist of little else."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.head)
    image, kernel, out = (
        dict(zip(names, array.shape, strict=True))
        for names, array in zip(labels.groups(), (left, right, result), strict=True)
    )
    total = 2.0 * out["b"] * out["f"] * kernel["i"]
    for axis in (name for name in out if name.isdigit()):
        total *= _pairs(product.head, int(axis), image[axis], kernel[axis], out[axis])
    return total


def _pairs(head: str, axis: int, image: int, window: int, out: int) -> int:
    """The number of pairs (output position, window tap) that lie within the input, along one axis."""

    def value(name: str, default: str) -> str:
        match = re.search(rf"window=\{{[^}}]*\b{name}=([\w-]+)", head)
        return match[1].split("x")[axis] if match else default

    padding = int(value("pad", "0_0").split("_")[0])
    stride, dilation, spacing = (int(value(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    edge = (image - 1) * spacing + 1
    inside = 0
    for tap in range(window):
        start = tap * dilation - padding  # of the first output
        # Input positions are start + stride * i for i in range(out), within [0, edge), at multiples of `spacing`.
        first, last = max(0, -(start // stride)), min(out - 1, (edge - 1 - start) // stride)
        positions = range(first, last + 1)
        inside += len(positions) if spacing == 1 else sum((start + stride * i) % spacing == 0 for i in positions)
    return inside


def kernels(program: Program) -> tuple[list[Kernel], dict[str, int]]:
    """(attention kernels, name -> runs of all other kernels, about which nothing is known)."""
    attention, unknown = [], {}
    for _, instruction, times in program.walk():
        if instruction.opcode != "custom-call" or instruction.target != KERNEL:
            continue
        name = re.sub(r"[._]?\d*$", "", instruction.name)
        if products := _attention_products(instruction):
            attention.append(_attention(instruction, name, products, times))
        else:
            unknown[name] = unknown.get(name, 0) + times
    return attention, unknown


def _attention_products(instruction: Instruction) -> int:
    """The number of matmuls of the size of the scores in a splash or flash attention kernel; 0 for any other kernel.
    Forward 2: scores and outputs. Backward 5: the scores again, and the gradients of weights, values, keys and queries;
    in two kernels 4 + 3, which both compute the scores and the gradient of the weights."""
    if not re.search(r"splash|flash|attention|mha", f"{instruction.name} {instruction.op_name}".lower()):
        return 0
    if "dkv" in instruction.name:
        rank = len(_queries(instruction)[0].shape)
        makes_dq = any(len(a.shape) > rank for a in instruction.results)  # a partial dq for each block of keys
        return 5 if makes_dq else 4
    return 3 if "dq" in instruction.name else 2


def _queries(instruction: Instruction) -> list[Array]:
    """Floating point operands with three axes or more; queries and keys come first. The largest result is no
    substitute: the log-sum-exp has 128 lanes for each query, whatever the head size."""
    return [a for a in instruction.operand_types if len(a.shape) >= 3 and a.dtype[0] in "bf"]


def _attention(instruction: Instruction, name: str, products: int, times: int) -> Kernel:
    q, k = _queries(instruction)[:2]
    *batch_and_heads, queries, size = q.shape
    flops = products * 2.0 * math.prod(batch_and_heads) * queries * k.shape[-2] * size / 2
    return Kernel(name, flops, flops * (math.ceil(size / 128) * 128 / size), times)
