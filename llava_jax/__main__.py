"""python -m llava_jax VERB ...; `python -m llava_jax --help` lists the verbs.

Flags are written `--name value` or `--name=value`, with dashes or underscores in the name.
Exit codes: 0 success, 1 the verb found a problem, 2 bad usage or input, 130 Ctrl-C. `train --help` lists its own.
"""

import os
import sys

import tyro

from llava_jax.cli import data_inspect, eval_score
from llava_jax.cli.chat import chat
from llava_jax.cli.checkpoints import checkpoints
from llava_jax.cli.convert import convert
from llava_jax.cli.plan import plan
from llava_jax.cli.train import main as train
from llava_jax.errors import UserError
from llava_jax.output.console import log

# A verb is a function of its command line. It imports jax only when it runs, so that --help is fast. A group is a pair:
# its description, its verbs. The command lines of train and plan contain a config: absl parses them, tyro only lists
# the two verbs.
VERBS = {
    "train": train,
    "chat": chat,
    "convert": convert,
    "checkpoints": checkpoints,
    "plan": plan,
    "data": ("Checks, shows and builds data sets.", data_inspect.VERBS),
    "eval": (
        "Measures models on benchmarks.",
        {"scienceqa": ("Answers ScienceQA, scores the answers, and combines them with GPT-4's.", eval_score.SCIENCEQA)},
    ),
}
ALIASES = {"checkpoints": ("ckpt",)}


def main(argv: list[str]) -> int:
    """Runs the verb at the start of `argv` (without the program's name). Returns the exit code."""
    verb, arguments = argv[:1], argv[1:]
    if verb == ["train"]:  # outside `try`: it has its own exit codes, those of `python -m llava_jax.main`
        return train(["llava_jax train", *arguments])
    try:
        try:
            if verb == ["plan"]:
                return plan(arguments)
            return _app(VERBS).cli(prog="python -m llava_jax", args=argv, config=(tyro.conf.FlagCreatePairsOff,))
        finally:
            sys.stdout.flush()  # here, where errors are caught, and not when Python exits
    except UserError as e:
        log(f"error: {e}", to_stderr=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports the error again at exit
        return 1


def _app(verbs: dict) -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        if isinstance(verb, tuple):
            description, inner = verb
            app.command(_app(inner), name=name, help=description)
        else:
            app.command(verb, name=name, aliases=ALIASES.get(name))
    return app


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides the compiler's start-up messages
    sys.exit(main(sys.argv[1:]))
