"""python -m llava_jax VERB ...: one line a verb; --help lists them."""

import os
import sys

import tyro

from llava_jax.errors import UserError
from llava_jax.terminal import chat

VERBS = {"chat": chat}


def main(argv: list[str]) -> int:
    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="python -m llava_jax", args=argv)
        return 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv[1:]))
