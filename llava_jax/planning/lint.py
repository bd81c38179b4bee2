"""Properties of a compiled program that make a train step slow, for tests to assert and for `plan` to report."""

import re

from llava_jax.planning.hlo.collectives import Collective, collectives
from llava_jax.planning.hlo.parse import Array, Program


def float32_gathers(program: Program, min_bytes: int = 2**20) -> list[Collective]:
    """All-gathers of float32 arrays of at least `min_bytes` bytes. A fast program gathers no weight in float32: casting
    it to the compute dtype first halves the traffic."""
    return [c for c in collectives(program) if c.kind == "all-gather" and c.dtype == "f32" and c.bytes >= min_bytes]


def reductions(program: Program) -> list[Collective]:
    """All-reduces and reduce-scatters with their shapes. None may have the shape of a frozen weight."""
    return [c for c in collectives(program) if c.kind in ("all-reduce", "reduce-scatter")]


def has_windowed_einsum(program: Program) -> bool:
    """Whether the partitioner replaced a gather of weights by a loop of small matmuls that accumulates in bfloat16
    (`xla_jf_spmd_threshold_for_windowed_einsum_mib` switches this off)."""
    return any("windowed_dot_general" in name for name in program.computations)


def largest_square(program: Program, length: int) -> Array | None:
    """The largest array in memory with two or more axes of size `length`, or None. The attention scores of all token
    pairs are such an array; an attention kernel leaves none. No other size of the model may equal `length`."""
    squares = (
        array for _, instruction, _ in program.walk() for array in instruction.results if array.shape.count(length) >= 2
    )
    return max(squares, key=lambda array: array.bytes, default=None)


def not_aliased(program: Program) -> dict[str, Array]:
    """Name -> array of the program inputs that no output aliases. A donated state must not be among them; the batch,
    frozen weights and other inputs without an updated output are."""
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", program.header)
    aliased = {int(n) for n in re.findall(r"\}: \((\d+), ", aliases[1])} if aliases else set()
    return {
        instruction.op_name or instruction.name: instruction.results[0]
        for number, instruction in program.parameters().items()
        if number not in aliased and instruction.results
    }


def slowed_by(program: Program, has_kernel: bool, length: int) -> tuple[str, ...]:
    """What slows a train step down, as messages. has_kernel: it uses an attention kernel. length: tokens of a row."""
    findings = [f"float32 {gather.payload[0].shape} is gathered, not bfloat16" for gather in float32_gathers(program)]
    if has_windowed_einsum(program):
        findings.append("the gather of weights became a loop of small matmuls")
    inputs = {array.shape for array in (i.results[0] for i in program.parameters().values() if i.results)}
    square = largest_square(program, length) if has_kernel else None
    # Scores have more than three axes; weights of a ViT of width 1024 may have two axes of 1024 as well.
    if square and square.shape not in inputs and len(square.shape) > 3:
        findings.append(f"the scores of all token pairs, {square.dtype}{list(square.shape)}, are in memory")
    state = [name for name in not_aliased(program) if re.search(r"\b(trainable|opt_state)\b", name)]
    return tuple(findings + [f"{name} is not updated in place" for name in state])
