"""Converts between ml_collections' ConfigDict, which config files and flags edit, and the frozen `Config`."""

import dataclasses

from ml_collections import ConfigDict

from llava_jax.config.build import as_dict, build_dataclass, flatten, suggestion, within_stage
from llava_jax.config.schema import Config, Stage
from llava_jax.config.validate import check_config
from llava_jax.errors import ConfigError


def defaults() -> ConfigDict:
    """Returns a ConfigDict with every default and no stages. A file under `configs/` starts from it."""
    return ConfigDict(as_dict(Config()))


def stage(**changes) -> ConfigDict:
    """Returns the defaults of a stage as a ConfigDict, with `changes` to its top-level settings. Raises ConfigError for
    an unknown setting."""
    values = ConfigDict(as_dict(Stage()))
    for key, value in changes.items():
        if key not in values:
            raise ConfigError(f"a stage has no setting `{key}`{suggestion(key, values)}")
        values[key] = value
    return values


def from_config_dict(values: ConfigDict) -> Config:
    """Converts a ConfigDict to a Config. Raises ConfigError for unknown keys, wrong types and invalid values."""
    config = build_dataclass(Config, values.to_dict(), "config")
    check_config(config)
    # A ConfigDict sorts its keys; `run` defines the order. Stages that are not in `run` are dropped.
    return dataclasses.replace(config, stages={name: config.stages[name] for name in config.run})


def describe_values(config: Config, overrides: dict[str, object], file: str) -> list[str]:
    """Returns one line per value: path, value and origin (default, the config file or the command line)."""
    base = flatten(Config())
    base |= flatten(Stage())  # the two have no name in common
    lines = []
    for path, value in flatten(config).items():
        is_overridden = any(path == o or path.startswith(f"{o}.") for o in overrides)  # a flag may set a whole group
        origin = "command line" if is_overridden else "default" if value == base[within_stage(path)] else file
        lines.append(f"{path} = {value!r}  ({origin})")
    return lines
