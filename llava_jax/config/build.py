"""Converts nested dicts to the frozen config dataclasses and back. Checks types and refuses unknown keys."""

import dataclasses
import difflib
import types
import typing

from llava_jax.errors import ConfigError


def flatten(value, prefix: str = "") -> dict[str, object]:
    """Flattens a Config, or a part of one, to {dotted path: value}."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    out = {}
    for key, item in value.items():
        out |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return out


def within_stage(path: str) -> str:
    """Removes the prefix `stages.NAME.`: `stages.NAME.data.path` -> `data.path`. Other paths are unchanged."""
    return path.split(".", 2)[2] if path.startswith("stages.") else path


def as_dict(value):
    """Like dataclasses.asdict, but does not copy tuples."""
    return {
        f.name: as_dict(v) if dataclasses.is_dataclass(v := getattr(value, f.name)) else v
        for f in dataclasses.fields(value)
    }


def look_up(table: dict, name: str, path: str):
    if name not in table:
        raise ConfigError(
            f"{path}={name!r} is not a known architecture{suggestion(name, table)}; known: {sorted(table)}"
        )
    return table[name]


def suggestion(key: str, known) -> str:
    matches = difflib.get_close_matches(key, [str(k) for k in known], n=1)
    return f"; did you mean `{matches[0]}`?" if matches else ""


def build_dataclass(kind: type, values: object, path: str):
    """Builds the dataclass `kind` from a dict. Raises ConfigError with the dotted path (below `path`) of an unknown key
    or a wrong type."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a group of settings, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types_ = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path}.{key} is not a setting{suggestion(key, fields)}")
    return kind(**{key: _value(types_[key], v, f"{path}.{key}") for key, v in values.items()})


def _value(expected, value, path: str):
    if dataclasses.is_dataclass(expected):
        return build_dataclass(expected, value, path)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be a group of settings, not {value!r}")
        return {k: _value(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path} must be a tuple, not {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{path} must have {len(args)} items, not {len(value)}: {value!r}")
        return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, path)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{path} must be of type {expected.__name__}, not {type(value).__name__} ({value!r})")
    return value


def check_choice(value: str, allowed: tuple[str, ...], path: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{path}={value!r} is not one of {', '.join(allowed)}{suggestion(value, allowed)}")
