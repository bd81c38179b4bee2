"""python -m llava_jax VERB ...; `python -m llava_jax --help` lists the verbs.

Flags are written `--name value` or `--name=value`, with dashes or underscores in the name.
Exit codes: 0 done, 1 the verb says that something is wrong with its result, 2 bad usage or input, 130 Ctrl-C; those of
`train` are in its --help.
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

# A verb is a function of its command line; it imports jax when it is called, so that --help answers at once. Groups are
# pairs: what they do, and their verbs. The command lines of train and plan have a config in them; absl reads these, not
# tyro, which only lists them.
VERBS = {
    "train": train,
    "chat": chat,
    "convert": convert,
    "checkpoints": checkpoints,
    "plan": plan,
    "data": ("Looks at data sets before they are trained on, and makes them.", data_inspect.VERBS),
    "eval": (
        "Measures models on benchmarks.",
        {"scienceqa": ("Answers ScienceQA, scores answers, and joins them with GPT-4's.", eval_score.SCIENCEQA)},
    ),
}
ALIASES = {"checkpoints": ("ckpt",)}


def main(argv: list[str]) -> int:
    """Runs the verb that `argv` (without the program's name) begins with; returns the exit code."""
    verb, arguments = argv[:1], argv[1:]
    if verb == ["train"]:  # outside: it ends as `python -m llava_jax.main` does, with its own exit codes
        return train(["llava_jax train", *arguments])
    try:
        try:
            if verb == ["plan"]:
                return plan(arguments)
            return _app(VERBS).cli(prog="python -m llava_jax", args=argv, config=(tyro.conf.FlagCreatePairsOff,))
        finally:
            sys.stdout.flush()  # not at Python's end, where nobody catches what comes of it
    except UserError as e:
        log(f"error: {e}", to_stderr=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it again at its end
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv[1:]))
