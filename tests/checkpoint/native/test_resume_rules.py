"""Which changed settings, samples and parameters a resumed run refuses, reports or ignores."""

import dataclasses
import shlex

import pytest

from llava_jax.checkpoint.native.resume_rules import RULES, as_json, compare_settings
from llava_jax.config.build import flatten
from llava_jax.config.schema import Config, Data, Optimizer, Stage
from llava_jax.errors import ConfigError

SAMPLES = {"a.json": [300, "aaaa"]}
TRAINED = ["llm/head/kernel", "projector/kernel"]
REFUSED = {
    "seed", "model.vision", "model.llm", "model.projector", "model.select_layer", "model.select_feature", "data.source",
    "data.split", "data.prompt_format", "data.scenes", "data.template", "data.aspect", "data.exif", "data.packing",
    "data.lengths", "data.held_out", "batch",
}  # fmt: skip
SILENT = {
    "mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat", "model.unroll", "model.attention", "accumulation",
    "loss_chunks", "weights", "data.samples", "data.threads", "data.workers", "data.bad_ceiling", "guard.in_a_row",
    "checkpoint.every", "checkpoint.keep", "log_every", "hash_frozen", "save.vision", "save.projector", "save.llm",
    "eval.before", "eval.every", "eval.samples", "eval.shuffled", "eval.answers", "eval.questions",
    "eval.max_new_tokens",
}  # fmt: skip


def config(*stages: Stage, **changes) -> Config:
    """Stages s0, s1, ..."""
    named = {f"s{i}": stage for i, stage in enumerate(stages)}
    return dataclasses.replace(Config(run=tuple(named), stages=named), **changes)


def stage(data=(), optimizer=(), **changes) -> Stage:
    return Stage(data=Data(path="a.json", **dict(data)), optimizer=Optimizer(**dict(optimizer)), **changes)


def record(run: Config, index: int = 0, **changes) -> dict:
    facts = dict(stage=f"s{index}", index=index, tokenizer="tttt", samples=SAMPLES, trained=TRAINED)
    return facts | {"config": as_json(dataclasses.asdict(run))} | changes


def compare(old: Config | dict, new: Config | dict, index: int = 0) -> list[str]:
    old, new = (record(x, index) if isinstance(x, Config) else x for x in (old, new))
    return compare_settings("/runs/a", old, new)


def changed(value: object) -> object:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
    return ()


def with_setting(run: Config, path: str, value: object) -> dict:
    """The record of `run` with a setting of it or of its only stage changed."""
    changes = record(run)
    group = changes["config"] if path in flatten(Config()) else changes["config"]["stages"]["s0"]
    *parents, key = path.split(".")
    for parent in parents:
        group = group[parent]
    group[key] = as_json(value)
    return changes


PLAIN = config(
    stage(
        data=dict(lengths=(), mixture=()),
        optimizer=dict(weight_decay=0.1),
        learning_rates=((".*", 1e-3),),
        fresh=("llm",),
    )
)
VALUES = flatten(PLAIN) | flatten(PLAIN.stages["s0"])
SETTINGS = sorted(flatten(Config()) | flatten(Stage()))


def test_every_setting_of_the_schema_has_a_rule():
    assert set(SETTINGS) <= RULES.keys()
    assert {key for key, rule in RULES.items() if rule.kind == "silent"} == SILENT | {"run"}
    assert {key for key, rule in RULES.items() if rule.kind == "refused"} == REFUSED
    assert all(rule.effect for rule in RULES.values() if rule.kind != "silent")


@pytest.mark.parametrize("path", [path for path in SETTINGS if path not in ("run", "data.lengths", "data.mixture")])
def test_change_is_refused_reported_or_silent(path):
    old, new = VALUES[path], changed(VALUES[path])
    name = path if path in flatten(Config()) else f"stages.s0.{path}"
    record_with_change = with_setting(PLAIN, path, new)
    if path in SILENT:
        assert compare(PLAIN, record_with_change) == []
    elif path in REFUSED:
        with pytest.raises(ConfigError) as raised:
            compare(PLAIN, record_with_change)
        message = str(raised.value)
        assert f"/runs/a holds a run that cannot resume: {name} was {old!r}, is {new!r} (" in message
        assert shlex.quote(f"--config.{name}={old}") in message and "another --workdir" in message
        assert "\n" not in message
    else:
        (line,) = compare(PLAIN, record_with_change)
        assert line.startswith(f"changed since the checkpoint: {name} was {old!r}, is {new!r}: ")


PACKED, BUCKETS = dict(packing="pack"), dict(lengths=(256,))
MIXED = dict(mixture=(("a.json", "x", 1.0), ("b.json", "x", 1.0)))


@pytest.mark.parametrize(
    "old, new",
    [
        (stage(PACKED), stage(PACKED | dict(length=1024))),
        (stage(PACKED), stage(PACKED | dict(max_images=2))),
        (stage(PACKED), stage(PACKED | dict(overlong="error"))),
        (stage(BUCKETS), stage(BUCKETS | dict(length=1024))),
        (stage(BUCKETS), stage(BUCKETS, epochs=2)),
        (stage(BUCKETS), stage(dict(lengths=(512,)))),
        (stage(), stage(BUCKETS)),
        (stage(), stage(MIXED)),
        (stage(MIXED), stage()),
    ],
)
def test_what_decides_the_batches_is_refused(old, new):
    with pytest.raises(ConfigError, match=r"s0\..* was .*, is .* \(the batches would hold other samples\)"):
        compare(config(old), config(new))


def test_weight_decay_may_change_but_not_appear():
    low, high, without = (config(stage(optimizer=dict(weight_decay=x))) for x in (0.1, 0.2, 0.0))
    assert len(compare(low, high)) == 1
    for old, new in ((without, low), (low, without)):
        with pytest.raises(ConfigError, match="weight_decay was .*optimizer state has another form"):
            compare(old, new)


def test_changed_mixture_and_longer_stage_are_reported():
    other = stage(dict(mixture=(("a.json", "x", 3.0), ("c.json", "x", 1.0))))
    assert "mixed" in compare(config(stage(MIXED)), config(other))[0]
    assert "another schedule" in compare(config(stage(PACKED)), config(stage(PACKED, epochs=2)))[0]


def test_finished_stages_have_no_effect_and_later_ones_are_free():
    old = config(stage(), stage(), stage())
    new = config(stage(batch=4, save=dataclasses.replace(Stage().save, llm="x")), stage(), stage(batch=4))
    assert compare(old, new, index=1) == [
        "changed since the checkpoint: stages.s0.batch was 128, is 4: it has no effect any more, the stage is finished"
    ]
    assert compare(config(stage()), config(stage(), stage())) == [], "a stage is added"
    with pytest.raises(ConfigError, match=r"holds a run of the stages \('s0', 's1', 's2'\), run is \('s0',\)"):
        compare(old, config(stage()), index=1)


def test_setting_of_a_later_version_had_its_default():
    old, new = record(config(stage())), record(config(stage(dict(aspect="pad"))))
    del old["config"]["stages"]["s0"]["data"]["aspect"]
    old["config"]["removed"] = 1
    assert compare(old, config(stage())) == []
    with pytest.raises(ConfigError, match="data.aspect was 'crop', is 'pad'"):
        compare(old, new)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (SAMPLES, {"a.json": [300, "bbbb"]}, "a.json, has other samples than before, or another order"),
        (SAMPLES, {"b.json": [300, "bbbb"]}, "b.json, has other samples than before, or another order"),
        (SAMPLES, {"a.json": [299, "bbbb"]}, "a.json, had 300 samples, now 299"),
        (SAMPLES | {"c": [1, "c"]}, {"c": [1, "d"], "e": [2, "e"]}, "c, has other samples"),
        (SAMPLES, {"b.json": [300, "aaaa"]}, ""),
        (SAMPLES, {"a.json": [300, ""]}, ""),
        ({"a.json": [300, ""]}, SAMPLES, ""),
        (SAMPLES | {"c": [1, "c"]}, {"c": [1, "c"], "e": [2, "e"]}, ""),
    ],
)
def test_other_samples_are_refused_wherever_they_are(old, new, message):
    old, new = record(config(stage()), samples=old), record(config(stage()), samples=new)
    if not message:
        assert compare(old, new) == []
        return
    with pytest.raises(ConfigError, match=f"cannot resume: the data of stage s0, {message}"):
        compare(old, new)


@pytest.mark.parametrize(
    "trained, message",
    [
        (["llm/head/kernel"], "now freezes projector/kernel"),
        ([*TRAINED, "a", "b", "c", "d"], "now trains a, b, c and 1 more"),
        (["projector/kernel", "vision/x"], "now trains vision/x and freezes llm/head/kernel"),
    ],
)
def test_other_trained_parameters_are_refused_by_name(trained, message):
    run = config(stage(learning_rates=(("llm/.*", 1e-3), (".*", None))))
    with pytest.raises(ConfigError) as raised:
        compare(record(run), record(run, trained=trained))
    assert f"stages.s0.learning_rates {message} (the optimizer state" in str(raised.value)
    assert """'--config.stages.s0.learning_rates=(("llm/.*", 0.001), (".*", None))'""" in str(raised.value)


def test_other_tokenizer_is_refused_and_unknown_is_not_different():
    run = config(stage())
    with pytest.raises(ConfigError, match="the tokenizer has other tokens than before"):
        compare(record(run), record(run, tokenizer="other"))
    old = {key: value for key, value in record(run).items() if key not in ("tokenizer", "samples")}
    (line,) = compare(old, run)
    assert "older version" in line


def test_all_refused_changes_are_in_one_message():
    with pytest.raises(ConfigError, match="template was .*batch was 128, is 4 .*; the data of stage"):
        compare(config(stage()), record(config(stage(dict(template="plain"), batch=4)), samples={"a.json": [1, ""]}))
