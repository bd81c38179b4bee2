"""Parses the text of a compiled TPU program (`compiled.as_text()`), and counts how often each instruction runs.

The format is XLA's (openxla.org/xla/hlo_to_llvm, `hlo_parser.cc`), as libtpu 0.0.42 prints it. The program is
scheduled: the instructions of a computation run in order, one after the other. Loops are `while` with a body and a
condition. A fusion is one kernel; the computation that it calls runs inside of it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

HBM, HOST = 0, 5  # memory spaces; 1 is vector memory, 3 is v4's common memory, others are registers and flags
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # other names contain their size: bf16, s32, f8e4m3fn, u4

_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|called_computations|branch_computations)=\{?(%?[\w.-]+(?:, ?%[\w.-]+)*)"
)
_BRANCHES = re.compile(r"\b(?:true|false)_computation=%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type such as `bf16[4,256]{1,0:T(8,128)(2,1)S(1)}`."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
        if self.dtype.startswith("c"):
            return math.prod(self.shape) * bits // 8  # the 64 of c64 covers both parts
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction. `rest`: the text after the operands: dimensions, groups, called computations, backend_config."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    literal: str  # text in parentheses without operands: a constant's value, a parameter's number
    rest: str
    is_root: bool

    @functools.cached_property
    def results(self) -> tuple[Array, ...]:
        """Its result arrays in order, tuples flattened."""
        return arrays(self.type)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls, without the condition of a loop."""
        names = [name.strip().lstrip("%") for m in _CALLED.finditer(self.head) for name in m[1].split(",")]
        return tuple(names + _BRANCHES.findall(self.head))

    @functools.cached_property
    def head(self) -> str:
        """`rest` without the strings that a kernel's author or the compiler attached."""
        return re.split(r", (?:metadata|backend_config|frontend_attributes)=", self.rest, maxsplit=1)[0]

    @functools.cached_property
    def cycles(self) -> int:
        """The cycles that the compiler expects; 0 if it gives none."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(match[1]) if match else 0

    @functools.cached_property
    def target(self) -> str:
        """The target of a custom call."""
        match = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return match[1] if match else ""

    @functools.cached_property
    def op_name(self) -> str:
        """The JAX operation that it came from; for a parameter of the program, its path in the arguments."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1].replace("\\'", "'") if match else ""

    @functools.cached_property
    def operand_types(self) -> tuple[Array, ...]:
        """Types of the operands of a custom call with a fixed layout, as kernels have."""
        match = re.search(r"operand_layout_constraints=\{(.*?)\}, \w+=", self.rest + ", end=", re.S)
        return arrays(match[1]) if match else ()

    def number(self, attribute: str) -> int | None:
        """`index=3` -> 3."""
        match = re.search(rf"\b{attribute}=(\d+)", self.head)
        return int(match[1]) if match else None

    def dimensions(self, attribute: str) -> tuple[int, ...]:
        """`lhs_contracting_dims={1,2}` -> (1, 2)."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.head)
        return tuple(int(n) for n in match[1].split(",") if n) if match else ()


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """`header`: the first line, with the aliasing and the layouts of parameters and results."""

    header: str
    computations: dict[str, Computation]
    entry: str

    def parameters(self) -> dict[int, Instruction]:
        """The parameters of the program, by number."""
        return {int(i.literal): i for i in self.computations[self.entry].values() if i.opcode == "parameter"}

    def root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.is_root)

    def operand(self, computation: str, instruction: Instruction, index: int) -> Instruction:
        return self.computations[computation][instruction.operands[index]]

    def inside(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """Yields (computation, instruction) for all that a fusion does, nested fusions included."""
        for computation in instruction.called:
            for inner in self.computations[computation].values():
                yield computation, inner
                if inner.opcode == "fusion":
                    yield from self.inside(inner)

    def walk(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Yields (computation, instruction, times) for everything that runs. Loops multiply `times` by their trip
        count; of branches, the one with the most cycles is followed; fusions and reductions are not entered."""
        computation = computation or self.entry
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                for body in instruction.called:
                    yield from self.walk(body, times * (trip_count(self, computation, instruction) or 1))
            elif instruction.opcode == "conditional":
                yield from self.walk(max(instruction.called, key=self._cycles), times)
            elif instruction.opcode in ("call", "async-start"):
                for body in instruction.called:
                    yield from self.walk(body, times)

    def _cycles(self, computation: str) -> int:
        return sum(i.cycles * times for _, i, times in self.walk(computation))


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, in order."""
    result = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        result.append(Array(dtype, shape, int(space[1]) if space else HBM))
    return tuple(result)


def parse_program(text: str) -> Program:
    """Raises ValueError where `text` is no program in XLA's text format."""
    text = re.sub(r"/\*.*?\*/", "", text)
    lines = text.splitlines()
    if not lines or not lines[0].startswith("HloModule"):
        raise ValueError("this is not the text of a compiled program: it must begin with HloModule")
    computations, entry, current, pending = {}, None, None, []

    def finish() -> None:
        if pending and current is not None:
            instruction = _instruction("\n".join(pending))
            current[instruction.name] = instruction
        pending.clear()

    for line in lines[1:]:
        if match := _COMPUTATION.match(line):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif line == "}":
            finish()
            current = None
        elif _INSTRUCTION.match(line):
            finish()
            pending.append(line)
        elif pending:
            pending.append(line)  # a string with a line break in it
    if entry is None:
        raise ValueError("this program has no ENTRY computation")
    return Program(lines[0], computations, entry)


def _instruction(text: str) -> Instruction:
    match = _INSTRUCTION.match(text)
    start = match.end()
    end = _matching_parenthesis(text, start) + 1 if text[start] == "(" else text.index(" ", start)
    opcode, opening = re.compile(r" *([\w-]+)\(").match(text, end)[1], text.index("(", end)
    closing = _matching_parenthesis(text, opening)
    inner = text[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.-]+)", inner))
    is_root = bool(match[1])
    return Instruction(
        match[2], opcode, text[start:end], operands, "" if operands else inner, text[closing + 1 :], is_root
    )


def _matching_parenthesis(text: str, begin: int) -> int:
    """The index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis does not close: {text[begin : begin + 80]}")


def trip_count(program: Program, computation: str, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if this depends on the data (decoding until all rows are done).

    Read from backend_config if it is there. Otherwise derived from the form of JAX's loops: a counter that starts at a
    constant, to which the body adds a constant, below a constant.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(match[1])
    condition, body = re.search(r"condition=%?([\w.-]+)", loop.head)[1], loop.called[0]
    test = program.root(condition)
    if test.opcode != "compare":
        return None
    left, right = (_producer(program, condition, name) for name in test.operands)
    direction = re.search(r"direction=(\w+)", test.head)[1]
    if left.opcode == "constant":
        left, right, direction = right, left, {"GT": "LT", "GE": "LE"}.get(direction, "")
    if left.opcode != "get-tuple-element" or direction not in ("LT", "LE"):
        return None
    index = left.number("index")
    body_root = program.root(body)
    if body_root.opcode != "tuple":
        return None
    limit = _constant(program, condition, right.name)
    start = _constant(program, computation, program.operand(computation, loop, 0).operands[index])
    step = _step(program, body, body_root.operands[index], index)
    if limit is None or start is None or not step:
        return None
    return max(0, math.ceil((limit + (direction == "LE") - start) / step))


def _producer(program: Program, computation: str, name: str) -> Instruction:
    """The instruction that computes the value of `name`, with copies and conversions skipped."""
    instruction = program.computations[computation][name]
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        instruction = program.operand(computation, instruction, 0)
    return instruction


def _constant(program: Program, computation: str, name: str) -> int | None:
    """The integer value of a constant instruction, None for any other."""
    origin = _producer(program, computation, name)
    is_integer = origin.opcode == "constant" and re.fullmatch(r"-?\d+", origin.literal)
    return int(origin.literal) if is_integer else None


def _step(program: Program, body: str, name: str, index: int) -> int | None:
    """What the body adds to the counter, element `index` of the loop's state; None if it does something else."""
    addition = _producer(program, body, name)
    if addition.opcode != "add":
        return None
    parts = [_producer(program, body, operand) for operand in addition.operands]
    if not any(p.opcode == "get-tuple-element" and p.number("index") == index for p in parts):
        return None
    return next((n for p in parts if (n := _constant(program, body, p.name)) is not None), None)
