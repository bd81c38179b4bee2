"""python -m llava_jax.main --config=FILE ... is `python -m llava_jax train`; see `llava_jax.cli.train`."""

import os
import sys

from llava_jax.cli.train import main

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides the compiler's start-up messages
    sys.exit(main(sys.argv))
