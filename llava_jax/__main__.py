"""python -m llava_jax VERB ...; `python -m llava_jax --help` lists the verbs.

Flags are written `--name value` or `--name=value`, with dashes or underscores in the name.
Exit codes: 0 success, 1 the verb found a problem, 2 bad usage or input, 130 Ctrl-C, 129 SIGHUP, 143 SIGTERM.
`train --help` lists its own.
"""

import sys

from llava_jax.cli.program import run_program, run_verb
from llava_jax.output.interrupts import exit_code_of


def command(argv: list[str]) -> int:
    """Runs the verb at the start of `argv` (without the program's name), and returns or raises as it does."""
    from llava_jax.cli.verbs import run_command  # not at the top: Ctrl-C during its imports is handled

    return run_command(argv)


def main(argv: list[str]) -> int:
    """Runs the verb at the start of `argv` within a Python program. Returns the exit code."""
    try:
        return run_verb(command, argv)
    except KeyboardInterrupt as e:
        return exit_code_of(e)


if __name__ == "__main__":
    run_program(command, sys.argv[1:])
