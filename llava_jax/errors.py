"""Errors that a user can cause, which `main` prints without a traceback, and a decorator for renamed keywords.

A message says what happened, where (file, sample id, tensor) and what to do.
"""

import functools
import unicodedata
import warnings
from collections.abc import Callable


class UserError(Exception):
    """Invalid input or environment. `exit_code`: the exit status of the process."""

    exit_code = 1


class ConfigError(UserError):
    """A bad flag or config value (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A sample, image or data file that cannot be used; the message names it (exit code 1).

    `kind`: the category in reports, one of `data.inspection.check.KINDS`.
    """

    def __init__(self, message: str, kind: str = "unusable"):
        super().__init__(message)
        self.kind = kind  # not in args, but in __dict__, so pickling keeps it


class Diverged(UserError):
    """Too many steps in a row had to be skipped (exit code 3)."""

    exit_code = 3


class TooLong(DataError):
    """A conversation that leaves the model no room for an answer."""


def harmless(text: object) -> str:
    """Returns `str(text)` without control characters (except line breaks and tabs), which can manipulate a terminal:
    file names, ids and answers come from others. Lone surrogates, which cannot be encoded, become question marks."""
    kept = "".join(c for c in str(text) if c in "\n\t" or unicodedata.category(c) != "Cc")
    return kept.encode(errors="replace").decode()


def renamed_keywords(**new_names: str) -> Callable[[Callable], Callable]:
    """Returns a decorator that keeps old names of keyword arguments working.

        @renamed_keywords(is_streamed="stream")
        def chat(..., stream=False): ...

    An old keyword emits a DeprecationWarning; the old and the new one together raise TypeError.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **options):
            for old in new_names.keys() & options.keys():
                new = new_names[old]
                if new in options:
                    raise TypeError(f"{function.__name__}() got {new}= and {old}=, its old name")
                warnings.warn(f"{function.__name__}(): {old}= is now {new}=", DeprecationWarning, stacklevel=2)
                options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate
