"""The errors a user can cause: what happened, where, what to do. `main` prints them without a traceback."""


class UserError(Exception):
    """A fault in what the user gave us. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(UserError):
    """A bad flag or config value (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A sample, image or data file that cannot be used; the message names it (exit code 1)."""


class Diverged(UserError):
    """Too many steps in a row had to be skipped (exit code 3)."""

    exit_code = 3


class TooLong(DataError):
    """A conversation that leaves the model no room for an answer."""
