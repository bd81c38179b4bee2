"""Command lines with a config: --config=FILE --config.NAME=VALUE and the flags of the verb."""

import re
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from llava_jax.config.build import flatten
from llava_jax.config.config_dict import describe_values, from_config_dict
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, UserError
from llava_jax.output.files import local_path

EXPECTED = {  # part of absl's reason: what the flag takes
    "literal for int()": "a whole number",
    "string to float": "a number",
    "Non-boolean": "true or false",
    "as tuple": """a tuple in Python's notation, e.g. "('a', 1)"; quote it in a shell""",
    "as a ConfigDict": "set value by value, e.g. --config.mesh.fsdp=8",
}


def read_command_line(
    argv: list[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues, Path, list[str]]:
    """Parses `argv`, which begins with the program's name. `define` adds the flags of the verb, with underscores.

    Returns (config, all flags, path of the config file, lines for the log with the source of each value).
    Raises ConfigError for an error in the flags, in the config file or in a value.
    """
    flag_values = flags.FlagValues()  # absl's global flags include those of libraries
    config_flags.DEFINE_config_file("config", None, "the config file", flag_values=flag_values, sys_argv=argv)
    define(flag_values)
    for name in [name for name in flag_values if "_" in name]:
        flags.DEFINE_alias(name.replace("_", "-"), name, flag_values=flag_values)
    try:
        extra = flag_values(argv)[1:]
        if extra:
            raise ConfigError(f"unexpected argument {extra[0]!r}; settings are written --config.name=value")
        if not flag_values["config"].present:
            raise ConfigError("--config=FILE is required, e.g. --config=configs/quickstart.py; see --help")
        file = Path(config_flags.get_config_filename(flag_values["config"]))
        values, overrides = flag_values["config"].value, config_flags.get_override_values(flag_values["config"])
        if not isinstance(values, ConfigDict):
            getattr(values, "lock", None)  # raises the reason if the file could not be read
            raise ConfigError(f"{file}: get_config() must return a changed llava_jax.config.defaults(), not {values!r}")
    except Exception as e:  # a config file is a program; it may raise anything
        raise ConfigError(_explain(e)) from None
    config = from_config_dict(values)
    for path, value in flatten(config).items():
        if not path.endswith("learning_rates"):  # their patterns are no paths
            _check_paths(f"config.{path}", value)
    return config, flag_values, file, describe_values(config, overrides, file.name)


def _check_paths(name: str, value: object) -> None:
    """Raises ConfigError for a string, also within tuples, that is a URL."""
    if isinstance(value, str):
        local_path(value, name)
    for item in value if isinstance(value, tuple) else ():
        _check_paths(name, item)


def _explain(error: Exception) -> str:
    """The error in one line; if it arose in the config file, with file and line."""
    location, cause = "", error
    while cause is not None:  # ml_collections and absl wrap an exception of the file up to two times
        for frame, line in traceback.walk_tb(cause.__traceback__):
            if frame.f_globals.get("__name__") == "config_config":  # the module name that ml_collections uses
                location, error = f"{frame.f_code.co_filename}:{line}: ", cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    if location and not isinstance(error, UserError):
        return f"{location}{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return f"the config file cannot be read: {str(error.__cause__ or error).splitlines()[-1].strip()}"
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, KeyError):  # str() of it is a repr
        return "no such setting in the config: " + str(error.args[0]).replace("\n", "; ")
    if "has no attribute 'get_config'" in str(error):
        return "the config file defines no get_config(); start from one of configs/"
    for name, value, reason in re.findall(r"^flag --([^=]*)=(.*?): (.*)", str(error).strip(), re.DOTALL):
        for mark, expected in EXPECTED.items():
            if mark in reason:
                return f"--{name}={value} must be {expected}"
    lines = str(error).strip().splitlines()
    return location + " ".join(lines if len(lines) < 3 else [lines[0], lines[-1]])  # without a traceback in the middle
