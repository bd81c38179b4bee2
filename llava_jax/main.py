"""python -m llava_jax.main --config=FILE ... is `python -m llava_jax train`; see `llava_jax.cli.train`."""

import sys

from llava_jax.cli.program import run_program


def main(argv: list[str]) -> int:
    """Trains; `argv` begins with the program's name. Returns the exit code."""
    from llava_jax.cli.train import main as train  # not at the top: Ctrl-C during its imports is handled

    return train(argv)


if __name__ == "__main__":
    run_program(main, sys.argv)
