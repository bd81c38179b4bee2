"""What a compiled program has or has not, for tests to assert and for `plan` to tell: a fast step is made of these."""

import re

from llava_jax.planning.hlo.collectives import Collective, collectives
from llava_jax.planning.hlo.parse import Array, Program


def float32_gathers(program: Program, min_bytes: int = 2**20) -> list[Collective]:
    """All-gathers of float32 arrays of `at_least` so many bytes. Of weights there must be none: they are to be cast to
    the compute dtype first, which halves what is sent."""
    return [c for c in collectives(program) if c.kind == "all-gather" and c.dtype == "f32" and c.bytes >= min_bytes]


def reductions(program: Program) -> list[Collective]:
    """All-reduces and reduce-scatters, with their shapes: where a stage freezes a weight, none may have its shape."""
    return [c for c in collectives(program) if c.kind in ("all-reduce", "reduce-scatter")]


def has_windowed_einsum(program: Program) -> bool:
    """Whether the partitioner turned a gathering of weights into a loop of small products that adds up in bfloat16
    (`xla_jf_spmd_threshold_for_windowed_einsum_mib` switches it off)."""
    return any("windowed_dot_general" in name for name in program.computations)


def largest_square(program: Program, length: int) -> Array | None:
    """The largest array in memory with two or more axes of `length`, as scores of every token with every other have; an
    attention kernel leaves none. None where there is none. `length` must be no other size of the model."""
    squares = (
        array for _, instruction, _ in program.walk() for array in instruction.results if array.shape.count(length) >= 2
    )
    return max(squares, key=lambda array: array.bytes, default=None)


def not_aliased(program: Program) -> dict[str, Array]:
    """Name -> array of the program's inputs that no output takes the place of. Of a donated state nothing may be here;
    the batch, the frozen weights and what has no successor are."""
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", program.header)
    aliased = {int(n) for n in re.findall(r"\}: \((\d+), ", aliases[1])} if aliases else set()
    return {
        instruction.op_name or instruction.name: instruction.results[0]
        for number, instruction in program.parameters().items()
        if number not in aliased and instruction.results
    }


def slowed_by(program: Program, has_kernel: bool, length: int) -> tuple[str, ...]:
    """What a train step should not have and has, in words. has_kernel: it attends by a kernel, rows have `length`
    tokens."""
    findings = [f"float32 {gather.payload[0].shape} is gathered, not bfloat16" for gather in float32_gathers(program)]
    if has_windowed_einsum(program):
        findings.append("gathering of weights became a loop of small products")
    inputs = {array.shape for array in (i.results[0] for i in program.parameters().values() if i.results)}
    square = largest_square(program, length) if has_kernel else None
    # A ViT is 1024 wide: its weights are no scores.
    if square and square.shape not in inputs and len(square.shape) > 3:
        findings.append(f"scores of all tokens with all others, {square.dtype}{list(square.shape)}, lie in memory")
    state = [name for name in not_aliased(program) if re.search(r"\b(trainable|opt_state)\b", name)]
    return tuple(findings + [f"{name} is not written where it was" for name in state])
