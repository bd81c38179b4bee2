"""Programs that libtpu 0.0.42 compiled from tpu_programs.py, with known properties."""

import itertools
from pathlib import Path

from llava_jax.planning.hlo.parse import Program, parse_program
from llava_jax.planning.topologies import Topology

PROGRAMS = Path(__file__).parent / "programs"
MIB = 2**20


def program(name: str) -> Program:
    return parse_program((PROGRAMS / f"{name}.txt").read_text())


def coords(topology: Topology) -> list[tuple[int, ...]]:
    """Coordinates of the devices, row by row: the first axis of a mesh is then the first of the slice."""
    return list(itertools.product(*map(range, topology.shape)))
