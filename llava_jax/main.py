"""python -m llava_jax.main --config=FILE ...: the same as `python -m llava_jax train`, see `llava_jax.cli.train`."""

import os
import sys

from llava_jax.cli.train import main

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv))
