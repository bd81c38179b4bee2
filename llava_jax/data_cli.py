"""python -m llava_jax data VERB: makes and checks training data."""

from typing import Annotated, Any, Union

import tyro

from llava_jax.data_build import build, captions

VERBS = {"build": build, "captions": captions}
_OF = [Annotated[Any, tyro.conf.subcommand(name, constructor=verb)] for name, verb in VERBS.items()]
Verb = Union[tuple(_OF)]  # noqa: UP007


def data(verb: tyro.conf.OmitSubcommandPrefixes[Verb]) -> int:
    """Makes and checks training data."""
    return verb  # the exit code: tyro has called the verb to build this argument
