"""The errors a user can cause: what happened, where, what to do. `main` prints them without a traceback.

And the warning about a keyword that has a new name.
"""

import functools
import unicodedata
import warnings
from collections.abc import Callable


class UserError(Exception):
    """A fault in what the user gave us. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(UserError):
    """A bad flag or config value (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A sample, image or data file that cannot be used; the message names it (exit code 1).

    `kind`: what reports sort by and count, one of `data.check.KINDS`.
    """

    def __init__(self, message: str, kind: str = "unusable"):
        super().__init__(message)
        self.kind = kind  # not in args; pickling keeps it, as part of __dict__


class Diverged(UserError):
    """Too many steps in a row had to be skipped (exit code 3)."""

    exit_code = 3


class TooLong(DataError):
    """A conversation that leaves the model no room for an answer."""


def harmless(text: object) -> str:
    """`str(text)` without control characters (but for line breaks and tabs), which can do more to a terminal than
    write: names of files, ids and answers come from others. Half characters, which cannot be printed at all, become
    question marks."""
    kept = "".join(c for c in str(text) if c in "\n\t" or unicodedata.category(c) != "Cc")
    return kept.encode(errors="replace").decode()


def renamed_keywords(**new_names: str) -> Callable[[Callable], Callable]:
    """A decorator for a function some of whose keywords were renamed: the old ones still work.

        @renamed_keywords(is_streamed="stream")
        def chat(..., stream=False): ...

    An old keyword gives a DeprecationWarning; both at once raise TypeError.
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
