"""What a function computes with the matrix units, read from its jaxpr."""

import jax


def products(f, *args) -> list[tuple[str, str, str]]:
    """(left, right, accumulator) dtypes of every matrix product in one call of f; a loop's body counts each time."""

    def visit(jaxpr):
        for e in jaxpr.eqns:
            if e.primitive.name == "dot_general":
                yield (*(v.aval.dtype.name for v in e.invars), e.outvars[0].aval.dtype.name)
            for inner in jax.tree.leaves(list(e.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from list(visit(inner)) * e.params.get("length", 1)

    return list(visit(jax.make_jaxpr(f)(*args).jaxpr))
