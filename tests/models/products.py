"""What a function computes, read from its jaxpr."""

import jax


def equations(f, *args) -> list:
    """Every equation of f once, including those of inner functions and loop bodies."""
    return [e for e, _ in _visit(jax.make_jaxpr(f)(*args).jaxpr, 1)]


def products(f, *args) -> list[tuple[str, str, str]]:
    """(left, right, accumulator) dtypes of every matmul in one call of f; a loop body counts each iteration."""
    dtypes = []
    for e, times in _visit(jax.make_jaxpr(f)(*args).jaxpr, 1):
        if e.primitive.name == "dot_general":
            dtypes += [(*(v.aval.dtype.name for v in e.invars), e.outvars[0].aval.dtype.name)] * times
    return dtypes


def inner_jaxprs(equation) -> list:
    """The jaxprs that a call, loop or branch runs; of branches the last, the default for all platforms."""
    if "branches" in equation.params:
        return [equation.params["branches"][-1].jaxpr]
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [x for x in (getattr(x, "jaxpr", x) for x in values) if hasattr(x, "eqns")]


def _visit(jaxpr, times: int):
    for e in jaxpr.eqns:
        yield e, times
        for inner in inner_jaxprs(e):
            yield from _visit(inner, times * e.params.get("length", 1))
