"""Between ml_collections' ConfigDict, which files and flags change, and the frozen `Config` inside."""

import dataclasses

from ml_collections import ConfigDict

from llava_jax.config.build import as_dict, build_dataclass, flatten, suggestion, within_stage
from llava_jax.config.schema import Config, Stage
from llava_jax.config.validate import check_config
from llava_jax.errors import ConfigError


def defaults() -> ConfigDict:
    """A ConfigDict with every default and no stages: what a file under `configs/` starts from."""
    return ConfigDict(as_dict(Config()))


def stage(**changes) -> ConfigDict:
    """A stage's defaults as a ConfigDict, with top-level `changes` applied."""
    values = ConfigDict(as_dict(Stage()))
    for key, value in changes.items():
        if key not in values:
            raise ConfigError(f"a stage has no setting `{key}`{suggestion(key, values)}")
        values[key] = value
    return values


def from_config_dict(values: ConfigDict) -> Config:
    """ConfigDict -> frozen Config. Raises ConfigError for an unknown key, a wrong type or a value out of range."""
    config = build_dataclass(Config, values.to_dict(), "config")
    check_config(config)
    # A ConfigDict sorts its keys; `run` says the order, and a stage that it leaves out does not exist.
    return dataclasses.replace(config, stages={name: config.stages[name] for name in config.run})


def describe_values(config: Config, overrides: dict[str, object], file: str) -> list[str]:
    """One line per value: path, value and where it came from (default, the config file, the command line)."""
    base = flatten(Config())
    base |= flatten(Stage())  # no name is in both
    lines = []
    for path, value in flatten(config).items():
        is_overridden = any(path == o or path.startswith(f"{o}.") for o in overrides)  # a flag may set a whole group
        origin = "command line" if is_overridden else "default" if value == base[within_stage(path)] else file
        lines.append(f"{path} = {value!r}  ({origin})")
    return lines
