"""The table of the verbs of `python -m llava_jax`, and how a command line selects one."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import tyro

from llava_jax.cli import data_inspect, datagen, eval_score
from llava_jax.cli.chat import chat
from llava_jax.cli.checkpoints import checkpoints
from llava_jax.cli.convert import convert
from llava_jax.cli.plan import plan
from llava_jax.cli.serve import serve
from llava_jax.cli.train import main as train
from llava_jax.config.build import suggestion
from llava_jax.errors import ConfigError
from llava_jax.output.files import local_path

# A verb is a function of its command line. It imports jax only when it runs, so that --help is fast. A group is a pair:
# its description, its verbs. The command lines of train and plan contain a config: absl parses them, tyro only lists
# the two verbs.
VERBS = {
    "train": train,
    "chat": chat,
    "serve": serve,
    "convert": convert,
    "checkpoints": checkpoints,
    "plan": plan,
    "data": ("Checks, shows and builds data sets.", data_inspect.VERBS),
    "datagen": ("Makes instruction data with a chat model, and selects captions for stage 1.", datagen.VERBS),
    "eval": (
        "Measures models on benchmarks.",
        {"scienceqa": ("Answers ScienceQA, scores the answers, and combines them with GPT-4's.", eval_score.SCIENCEQA)},
    ),
}
ALIASES = {"checkpoints": ("ckpt",)}
PROGRAM = "python -m llava_jax"


def run_command(argv: list[str]) -> int:
    """Runs the verb at the start of `argv` (without the program's name). Returns the exit code. Raises ConfigError for
    an unknown verb, what the verb raises, and SystemExit for --help and for flags that tyro refuses."""
    known, path = VERBS, []
    while isinstance(known, dict):
        if not argv[len(path) :] or argv[len(path)].startswith("-"):
            if {"--help", "-h"} & set(argv):
                return _app(known).cli(prog=" ".join([PROGRAM, *path]), args=["--help"])
            raise ConfigError(f"`{' '.join([PROGRAM, *path])}` needs one of {', '.join(known)}; see --help")
        name = argv[len(path)]
        verb = next((v for n, v in known.items() if name in (n, *ALIASES.get(n, ()))), None)
        if verb is None:
            raise ConfigError(
                f"`{' '.join([PROGRAM, *path, name])}`: there is no {name!r}{suggestion(name, known)}; known are "
                f"{', '.join(known)}"
            )
        path.append(name)
        known = verb[1] if isinstance(verb, tuple) else verb
    arguments = argv[len(path) :]
    if path == ["train"]:
        return train(["llava_jax train", *arguments])
    if path == ["plan"]:
        return plan(arguments)
    prog = " ".join([PROGRAM, *path])
    return tyro.cli(_with_local_paths(known), prog=prog, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)) or 0


def _with_local_paths(verb: Callable) -> Callable:
    """`verb`, which raises ConfigError where one of its paths is a URL."""

    def check(name: str, value: object) -> None:
        if dataclasses.is_dataclass(value):
            value = vars(value)
        if isinstance(value, dict):
            for key, item in value.items():
                check(key, item)
        elif isinstance(value, tuple):
            for item in value:
                check(name, item)
        elif isinstance(value, Path):
            local_path(value, name)

    @functools.wraps(verb)
    def call(*args, **options):
        check("", inspect.signature(verb).bind(*args, **options).arguments)
        return verb(*args, **options)

    return call


def _app(verbs: dict) -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        if isinstance(verb, tuple):
            description, inner = verb
            app.command(_app(inner), name=name, help=description)
        else:
            app.command(verb, name=name, aliases=ALIASES.get(name))
    return app
