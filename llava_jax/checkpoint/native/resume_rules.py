"""What may differ between the run in a workdir and a config that resumes it: one rule for each setting.

Refused is what would train something else than the run does: other weights, other samples, another prompt. Reported is
what changes the result from here on, but may be meant. Silent is what only decides where and how fast the same values
are computed, and what is saved, logged and evaluated.
"""

import json
import shlex
from typing import NamedTuple

from llava_jax.config.build import flatten
from llava_jax.config.schema import Config, Stage
from llava_jax.errors import ConfigError


class Rule(NamedTuple):
    """kind: refused | reported | silent. effect: what the change would do, for the message."""

    kind: str
    effect: str = ""


_SCHEDULE = Rule("reported", "the learning rates follow another schedule from here on")
_ADAM = Rule("reported", "the updates from here on use it")
_GUARD = Rule("reported", "other steps may be skipped from here on")
_LOAD = Rule("reported", "nothing is loaded from it: the weights are those of the checkpoint")
_ROUNDING = Rule("reported", "frozen weights are rounded again, and the values from here on round differently")
_MODEL = Rule("refused", "the weights are of another model")
_IMAGES = Rule("refused", "the images would look different from here on")
_PROMPTS = Rule("refused", "the prompts would look different from here on")
_SAMPLES = Rule("refused", "the batches would hold other samples")
_ROWS = Rule("reported", "the rows have another form from here on")
_SILENT = (
    # The same values, up to rounding.
    "mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat", "model.unroll", "model.attention", "accumulation",
    "loss_chunks", "weights",
    # What is read ahead, planned, saved, logged and evaluated, and when a run stops.
    "data.samples", "data.threads", "data.workers", "data.bad_ceiling", "guard.in_a_row", "checkpoint.every",
    "checkpoint.keep", "log_every", "hash_frozen", "save.vision", "save.projector", "save.llm", "eval.before",
    "eval.every", "eval.samples", "eval.shuffled", "eval.answers", "eval.questions", "eval.max_new_tokens",
)  # fmt: skip
# Settings of a stage have no prefix `stages.NAME.` here: no name is in both groups. More rules are in `_rule`.
RULES = dict.fromkeys(_SILENT, Rule("silent")) | {
    "run": Rule("silent"),  # stages to come may change; `compare_settings` checks the others
    "seed": Rule("refused", "the order of the samples follows from it"),
    "model.vision": _MODEL,
    "model.llm": _MODEL,
    "model.projector": _MODEL,
    "model.select_layer": _MODEL,
    "model.select_feature": _MODEL,
    "model.dtype": _ROUNDING,
    "model.feature_dtype": _ROUNDING,
    "tokenizer": Rule("reported", "its tokens are compared with those of the run"),
    "load.vision": _LOAD,
    "load.projector": _LOAD,
    "load.llm": _LOAD,
    "guard.spike": _GUARD,
    "guard.on_spike": _GUARD,
    "guard.window": _GUARD,
    "data.source": _SAMPLES,
    "data.path": Rule("reported", "the samples are compared by their ids"),
    "data.image_folder": Rule("reported", "the images of a sample are not compared"),
    "data.mixture": Rule("reported", "the sources are mixed anew; each one continues with its next samples"),
    "data.split": _SAMPLES,
    "data.prompt_format": _PROMPTS,
    "data.scenes": _SAMPLES,
    "data.template": _PROMPTS,
    "data.aspect": _IMAGES,
    "data.exif": _IMAGES,
    "data.length": _ROWS,
    "data.max_images": _ROWS,
    "data.overlong": _ROWS,
    "data.packing": _SAMPLES,
    "data.lengths": _SAMPLES,
    "data.bad": Rule("reported", "samples that cannot be read are treated differently from here on"),
    "data.held_out": _SAMPLES,
    "optimizer.warmup_ratio": _SCHEDULE,
    "optimizer.schedule": _SCHEDULE,
    "optimizer.b1": _ADAM,
    "optimizer.b2": _ADAM,
    "optimizer.eps": _ADAM,
    "optimizer.first_moment": Rule("reported", "the first moments are converted"),
    "optimizer.weight_decay": _ADAM,
    "optimizer.clip": _ADAM,
    "learning_rates": Rule("reported", "the updates from here on use these rates"),
    "batch": _SAMPLES,
    "steps": _SCHEDULE,
    "epochs": _SCHEDULE,
    "fresh": Rule("reported", "it has no effect any more: the stage has begun"),
}
_STAGE_SETTINGS = tuple(flatten(Stage()))
_DECIDE_ROWS = ("data.length", "data.max_images", "data.overlong")  # with packing or several lengths
_OLDER_VERSION = "the checkpoint is of an older version, so samples and tokenizer cannot be compared with it"
_SHOWN = 3  # names of parameters in a message


def as_json(value: object) -> object:
    """Returns a value as it is after it was written to JSON and read again."""
    return json.loads(json.dumps(value))


def compare_settings(folder: str, old: dict, new: dict) -> list[str]:
    """Compares the record in a checkpoint, `old`, with that of the run that would resume from it, `new`; returns a line
    for each change that is reported.

    A record has `stage` and `index` (in both: of the checkpoint), `config` (as JSON), `trained` (paths of the trained
    parameters) and, except in older versions, `tokenizer` (a digest) and `samples` (name of a source -> [number, digest
    of the ids or ""]). A setting that `old` lacks had its default. Other entries that it lacks are unknown, not
    different.

    Raises ConfigError with all refused changes and the flags that undo them.
    """
    stage, stages_begun = old["stage"], old["index"] + 1
    was, now = (record["config"]["run"] for record in (old, new))
    if was[:stages_begun] != now[:stages_begun]:
        raise ConfigError(
            f"{folder} holds a run of the stages {_text(was)}, run is {_text(now)}; the stages up to {stage} must stay "
            f"the same ({_flag('run', was)}), or choose another --workdir"
        )
    refused, reported, flags = [], [], []
    for name in was[:stages_begun]:
        before, after = (_values(record["config"], name) for record in (old, new))
        for key in before:
            rule, is_of_stage = _rule(key, before, after), key in _STAGE_SETTINGS
            if before[key] == after[key] or rule.kind == "silent" or (name != stage and not is_of_stage):
                continue
            path = f"stages.{name}.{key}" if is_of_stage else key
            change = f"{path} was {_text(before[key])}, is {_text(after[key])}"
            if name != stage:
                reported.append(f"{change}: it has no effect any more, the stage is finished")
            elif rule.kind == "reported":
                reported.append(f"{change}: {rule.effect}")
            else:
                refused.append(f"{change} ({rule.effect})")
                flags.append(_flag(path, before[key]))
    if trained := _changed_parameters(old, new):
        refused.append(f"stages.{stage}.learning_rates {trained}")
        flags.append(_flag(f"stages.{stage}.learning_rates", _values(old["config"], stage)["learning_rates"]))
    refused += _changed_inputs(old, new, stage)
    if refused:
        raise ConfigError(
            f"{folder} holds a run that cannot resume: {'; '.join(refused)}. Restore what changed"
            f"{' with ' + ' '.join(flags) if flags else ''}, or choose another --workdir for a new run; its "
            f"load.llm, load.vision and load.projector may be {folder}"
        )
    lines = [f"changed since the checkpoint: {change}" for change in reported]
    return lines + ([] if "samples" in old else [_OLDER_VERSION])


def _values(config: dict, stage: str) -> dict[str, object]:
    """Returns setting -> value, in all of `config` and in one stage, as the keys of RULES."""
    defaults = {key: as_json(value) for key, value in (flatten(Config()) | flatten(Stage())).items()}
    values = flatten({key: value for key, value in config.items() if key != "stages"}) | flatten(
        config["stages"][stage]
    )
    return defaults | {key: value for key, value in values.items() if key in defaults}


def _rule(key: str, before: dict[str, object], after: dict[str, object]) -> Rule:
    """Returns the rule of a setting, which may depend on the values."""
    rows_depend = before["data.packing"] == "pack" and key in _DECIDE_ROWS
    batches_depend = before["data.lengths"] and key in (*_DECIDE_ROWS, "epochs")
    if rows_depend or batches_depend:
        return _SAMPLES
    if key == "data.mixture" and not (before[key] and after[key]):
        return _SAMPLES
    if key == "optimizer.weight_decay" and bool(before[key]) != bool(after[key]):
        return Rule("refused", "the optimizer state has another form with and without it")
    return RULES[key]


def _changed_parameters(old: dict, new: dict) -> str:
    """Describes which parameters are trained in one of the records only; "" if there are none."""
    was, now = set(old.get("trained", new["trained"])), set(new["trained"])
    parts = []
    for paths, verb in ((now - was, "trains"), (was - now, "freezes")):
        if paths:
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            parts.append(f"{verb} {', '.join(sorted(paths)[:_SHOWN])}{more}")
    return f"now {' and '.join(parts)} (the optimizer state is of the parameters trained before)" if parts else ""


def _changed_inputs(old: dict, new: dict, stage: str) -> list[str]:
    """Returns a message for the tokenizer and for each source of samples that is not the one the run started with."""
    messages = []
    if old.get("tokenizer", new["tokenizer"]) != new["tokenizer"]:
        messages.append("the tokenizer has other tokens than before: its folder in the workdir was changed or removed")
    was, now = old.get("samples", {}), new["samples"]
    if len(was) == len(now) == 1:  # its path may have changed
        (path,) = now
        was = {path: next(iter(was.values()))}
    for path in sorted(was.keys() & now.keys()):
        (count, digest), (new_count, new_digest) = was[path], now[path]
        data = f"the data of stage {stage}, {path},"
        if count != new_count:
            messages.append(f"{data} had {count:,} samples, now {new_count:,}")
        elif digest and new_digest and digest != new_digest:
            messages.append(f"{data} has other samples than before, or another order: the ids differ")
    return messages


def _text(value: object) -> str:
    """The value of a setting as a Python literal; JSON has lists in place of tuples."""
    return repr(_with_tuples(value))


def _with_tuples(value: object) -> object:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _flag(path: str, value: object) -> str:
    """The flag that sets a value, quoted for a shell."""
    literal = value if isinstance(value, str) else _text(value).replace("'", '"')  # in single quotes of a shell
    return shlex.quote(f"--config.{path}={literal}")
