"""Counts what a program moves to and from memory (HBM) and the host, from the shapes of what it runs.

Kernels that only move data (above all prefetches of weights) report no cycles. Without this count a program that is
bound by memory, as decoding is, would look too fast. A fusion that slices an operand counts the slice; one that writes
into an operand counts what it writes. Arrays in vector memory cost nothing.
"""

from collections.abc import Iterator

from llava_jax.planning.hlo.parse import HBM, HOST, Array, Instruction, Program

_FREE = {  # these name, order or describe arrays; what they wait for is counted at its start
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_BOOKKEEPING = ("AllocateBuffer", "ConcatBitcast", "Assume", "AsyncCollective", "Bitpacked")


def moved(program: Program) -> tuple[float, float]:
    """(bytes that one device reads from or writes to its HBM, bytes that it exchanges with the host)."""
    hbm = host = 0.0
    for computation, instruction, times in program.walk():
        for array in _instruction_moves(program, computation, instruction):
            hbm += times * array.bytes * (array.space == HBM)
            host += times * array.bytes * (array.space == HOST)
    return hbm, host


def _instruction_moves(program: Program, computation: str, instruction: Instruction) -> Iterator[Array]:
    opcode = instruction.opcode.removesuffix("-start")
    if instruction.opcode in _FREE or opcode.endswith("-done"):
        return
    if instruction.opcode == "custom-call" and any(name in instruction.target for name in _BOOKKEEPING):
        return
    instructions = program.computations[computation]
    operands = [instructions[name].results for name in instruction.operands]
    results = instruction.results
    if instruction.opcode.endswith("-start"):
        yield from _start_moves(opcode, operands, results)
    elif instruction.opcode == "fusion":
        yield from _fusion_moves(program, instruction, operands)
    elif opcode in _SLICES:
        yield from _slice_moves(operands[0][0], results[0])
    elif opcode == "dynamic-update-slice":
        yield from _slice_moves(results[0], operands[1][0])
    else:
        for arrays in (*operands, results):
            yield from arrays


def _slice_moves(whole: Array, part: Array) -> Iterator[Array]:
    """The part, in its own memory space and in that of the whole array."""
    yield part
    yield Array(part.dtype, part.shape, whole.space)


def _start_moves(opcode: str, operands: list, results: tuple[Array, ...]) -> Iterator[Array]:
    if opcode == "copy":  # (to, from, flag)
        yield from results[:2]
    elif opcode in _SLICES:  # ((from, indices ...), to, flag)
        yield from _slice_moves(operands[0][0], max((r for r in results[1:] if r.shape), key=lambda a: a.bytes))
    elif opcode == "dynamic-update-slice":
        yield from _slice_moves(operands[0][0], operands[1][0])
    else:  # a collective: (from, to, flags)
        yield from (array for array in results if array.shape)


def _fusion_moves(program: Program, fusion: Instruction, operands: list) -> Iterator[Array]:
    body = fusion.called[0]
    inner = program.computations[body]
    written = [_producer(program, body, name) for name in _roots(program.root(body))]
    replaced = {_producer(program, body, w.operands[0]).name for w in written if w.opcode == "dynamic-update-slice"}
    for instruction in inner.values():
        if instruction.opcode != "parameter" or instruction.name in replaced:
            continue
        parts = _slices_read(program, body, instruction.name)
        for array in operands[int(instruction.literal)]:
            yield from [array] if parts is None else (Array(p.dtype, p.shape, array.space) for p in parts)
    types = iter(fusion.results)
    for instruction in written:
        if instruction.opcode == "dynamic-update-slice":
            part = program.operand(body, instruction, 1).results[0]
            yield from (Array(part.dtype, part.shape, whole.space) for whole in [next(types)])
        else:
            made = [next(types) for _ in instruction.results]
            yield from [] if instruction.opcode == "parameter" else made


def _slices_read(program: Program, computation: str, name: str) -> list[Array] | None:
    """The slices of an operand that a fusion reads, if it reads nothing else of it, nested fusions included; empty if
    it only passes the operand through. None: it reads the whole operand."""
    slices: list[Array] = []
    for reader in program.computations[computation].values():
        indices = [index for index, operand in enumerate(reader.operands) if operand == name]
        if not indices or reader.opcode == "tuple":
            continue
        if reader.opcode in _SLICES and indices == [0]:
            parts = [reader.results[0]]
        elif reader.opcode == "fusion":
            body = reader.called[0]
            inner = {int(i.literal): i.name for i in program.computations[body].values() if i.opcode == "parameter"}
            inner_slices = [_slices_read(program, body, inner[index]) for index in indices]
            parts = None if None in inner_slices else [part for one_read in inner_slices for part in one_read]
        else:
            parts = None
        if parts is None:
            return None
        slices += parts
    return slices


def _roots(root: Instruction) -> tuple[str, ...]:
    return root.operands if root.opcode == "tuple" else (root.name,)


def _producer(program: Program, computation: str, name: str) -> Instruction:
    instruction = program.computations[computation][name]
    while instruction.opcode in ("bitcast", "copy") and instruction.operands:
        instruction = program.operand(computation, instruction, 0)
    return instruction
