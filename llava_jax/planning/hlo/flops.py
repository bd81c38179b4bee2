"""What a compiled program computes: its matrix products, and the attention kernels, which say nothing about themselves.

Model FLOPs, what the model needs and no recomputation, are `train.metrics.model_flops`; these are the hardware's.
"""

import dataclasses
import math
import re

from llava_jax.planning.hlo.parse import Array, Instruction, Program

PRODUCTS = ("convolution", "dot")  # the TPU compiler writes most products as convolutions
KERNEL = "tpu_custom_call"  # Pallas, compiled by Mosaic


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One attention kernel. `flops`: of the half of the products that a causal mask leaves, for one run of it."""

    name: str
    flops: float
    padded: float  # the same with heads filled up to whole registers of 128, which is what the MXU does
    times: int


def product_flops(program: Program) -> float:
    """FLOPs of all matrix products and convolutions that one device runs."""
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
    """Products of a window that hang over the edge are none: with windows larger than the image, the compiler writes
    batched and transposed products as convolutions that consist of little else."""
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
    """How many (place, part of the window) lie within the image, along one axis."""

    def value(name: str, default: str) -> str:
        match = re.search(rf"window=\{{[^}}]*\b{name}=([\w-]+)", head)
        return match[1].split("x")[axis] if match else default

    padding = int(value("pad", "0_0").split("_")[0])
    stride, dilation, spacing = (int(value(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    edge = (image - 1) * spacing + 1
    inside = 0
    for tap in range(window):
        start = tap * dilation - padding  # of the first place
        # Places are at + stride * i for i in range(out), within [0, edge), on no hole.
        first, last = max(0, -(start // stride)), min(out - 1, (edge - 1 - start) // stride)
        positions = range(first, last + 1)
        inside += len(positions) if spacing == 1 else sum((start + stride * i) % spacing == 0 for i in positions)
    return inside


def kernels(program: Program) -> tuple[list[Kernel], dict[str, int]]:
    """(attention kernels, name -> how often of all other kernels, about which nothing is known)."""
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
    """How many products of the size of the scores a kernel of splash or flash attention makes: scores and outputs
    forward; backward the scores again, and the gradients of weights, values, keys and queries, in one kernel or (scores
    and the gradient of the weights twice) in two. 0 where it is no attention."""
    if not re.search(r"splash|flash|attention|mha", f"{instruction.name} {instruction.op_name}".lower()):
        return 0
    if "dkv" in instruction.name:
        rank = len(_queries(instruction)[0].shape)
        makes_dq = any(len(a.shape) > rank for a in instruction.results)  # one part for each block of keys
        return 5 if makes_dq else 4
    return 3 if "dq" in instruction.name else 2


def _queries(instruction: Instruction) -> list[Array]:
    """Its operands of three axes or more that hold no integers; queries and keys come first. Not the largest result:
    the log of the sums has 128 lanes for each query, whatever the size of a head."""
    return [a for a in instruction.operand_types if len(a.shape) >= 3 and a.dtype[0] in "bf"]


def _attention(instruction: Instruction, name: str, products: int, times: int) -> Kernel:
    q, k = _queries(instruction)[:2]
    *batch_and_heads, queries, size = q.shape
    flops = products * 2.0 * math.prod(batch_and_heads) * queries * k.shape[-2] * size / 2
    return Kernel(name, flops, flops * (math.ceil(size / 128) * 128 / size), times)
