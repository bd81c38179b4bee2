"""python -m llava_jax VERB ...; `python -m llava_jax --help` lists the verbs. Training is `python -m llava_jax.main`.

Exit codes: 0 done, 1 the verb says that something is wrong with its result, 2 bad usage or input, 130 Ctrl-C.
"""

import os
import sys

import tyro

from llava_jax.cli import data_inspect, eval_score
from llava_jax.cli.chat import chat
from llava_jax.cli.checkpoints import ckpt
from llava_jax.cli.convert import convert
from llava_jax.cli.plan import plan
from llava_jax.errors import UserError, harmless


def _plan() -> int:
    """Compiles a config's train step for TPUs that need not be there: memory, time, cost."""
    return plan(["--help"])  # for the list of verbs: `main` calls `plan` itself, whose flags tyro does not know


# A verb is a function of its command line; it imports jax when it is called, so that --help answers at once.
VERBS = {
    "chat": chat,
    "ckpt": ckpt,
    "convert": convert,
    "plan": _plan,
}
GROUPS = {  # of verbs or groups: (what they do, the verbs)
    "data": ("Looks at data sets before they are trained on, and makes them.", data_inspect.VERBS),
    "eval": (
        "Measures models on benchmarks.",
        {"scienceqa": ("Answers ScienceQA, scores answers, and joins them with GPT-4's.", eval_score.SCIENCEQA)},
    ),
}


def main(argv: list[str]) -> int:
    """Runs the verb that `argv` (without the program's name) begins with; returns the exit code."""
    try:
        if argv[:1] == ["plan"]:
            return plan(argv[1:])
        app = _app(VERBS | GROUPS)
        try:
            return app.cli(prog="python -m llava_jax", args=argv, config=(tyro.conf.FlagCreatePairsOff,))
        finally:
            sys.stdout.flush()  # not at Python's end, where nobody catches what comes of it
    except UserError as e:
        print(f"error: {harmless(e)}", file=sys.stderr)
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
            what, inner = verb
            app.command(_app(inner), name=name, help=what)
        else:
            app.command(verb, name=name)
    return app


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv[1:]))
