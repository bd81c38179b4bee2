"""Defaults of a config, and validation of its keys, types and values."""

import dataclasses

import pytest

from llava_jax import config
from llava_jax.config import (
    Config,
    Model,
    Stage,
    architectures,
    describe_values,
    flatten,
    from_config_dict,
    model_config,
)
from llava_jax.data.sources import scenes
from llava_jax.errors import ConfigError


def small():
    """A minimal valid config."""
    c = config.defaults()
    c.run = ("first",)
    c.stages.first = config.stage(steps=3, learning_rates=(("projector/.*", 1e-3), (".*", None)))
    c.stages.first.data.source = "scenes"
    return c


def changed(path: str, value):
    """`small()` with one value set as a config file would set it; the key may be new."""
    c = small()
    *groups, key = path.split(".")
    values = c
    for group in groups:
        values = values[group]
    with values.ignore_type():
        values[key] = value
    return c


def test_unset_values_have_their_defaults():
    read = from_config_dict(small())
    stage = Stage(steps=3, learning_rates=(("projector/.*", 1e-3), (".*", None)))
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, source="scenes"))
    assert read == Config(run=("first",), stages={"first": stage})


def test_defaults_hold_every_field_and_nothing_else():
    assert flatten(config.defaults().to_dict()) == flatten(Config())
    assert flatten(config.stage().to_dict()) == flatten(Stage())


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_config_dict(small()).seed = 1


def test_stages_follow_the_order_of_run():
    c = small()
    c.stages.another = c.stages.first
    c.stages.zero = c.stages.first
    c.run = ("zero", "first")
    assert list(from_config_dict(c).stages) == ["zero", "first"]


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("sed", 1, "config.sed is not a setting; did you mean `seed`"),
        ("qqq", 1, "config.qqq is not a setting$"),
        ("model.visoin", "tiny", "config.model.visoin is not a setting; did you mean `vision`"),
        ("stages.first.bath", 8, "config.stages.first.bath is not a setting; did you mean `batch`"),
        ("stages.first.data.lenght", 8, "config.stages.first.data.lenght is not a setting; did you mean `length`"),
        ("stages.first.optimizer.beta1", 0.9, "config.stages.first.optimizer.beta1 is not a setting"),
    ],
)
def test_unknown_key_error_suggests_the_nearest_key(path, value, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(path, value))


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("seed", "1", "config.seed must be of type int, not str"),
        ("seed", True, "config.seed must be of type int, not bool"),
        ("seed", 1.0, "config.seed must be of type int, not float"),
        ("hash_frozen", 1, "config.hash_frozen must be of type bool, not int"),
        ("tokenizer", None, "config.tokenizer must be of type str"),
        ("run", "first", "config.run must be a tuple"),
        ("run", (1,), r"config.run\[0\] must be of type str"),
        ("model", 3, "config.model must be a group of settings"),
        ("stages", 3, "config.stages must be a group of settings"),
        ("stages.first", 3, "config.stages.first must be a group of settings"),
        ("stages.first.optimizer.clip", "1", "config.stages.first.optimizer.clip must be of type float"),
        ("stages.first.learning_rates", ((".*", True),), r"learning_rates\[0\]\[1\] must be of type float, not bool"),
        ("stages.first.learning_rates", ((".*", "1e-3"),), r"learning_rates\[0\]\[1\] must be of type float"),
        ("stages.first.learning_rates", ((".*",),), r"learning_rates\[0\] must have 2 items"),
        ("stages.first.learning_rates", (".*", 1e-3), r"learning_rates\[0\] must be a tuple"),
    ],
)
def test_wrong_type_is_refused(path, value, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(path, value))


@pytest.mark.parametrize(
    "path, value, read",
    [
        ("stages.first.optimizer.clip", 2, 2.0),
        ("stages.first.learning_rates", [[".*", 1]], ((".*", 1.0),)),
        ("run", ["first"], ("first",)),
        ("stages.first.learning_rates", (("llm/.*", None), (".*", 1e-3)), (("llm/.*", None), (".*", 1e-3))),
    ],
)
def test_ints_and_lists_become_floats_and_tuples(path, value, read):
    setting = flatten(from_config_dict(changed(path, value)))[path]
    assert setting == read and type(setting) is type(read)


RANGES = [
    (("run", ()), "run is empty"),
    (("run", ("first", "first")), "names a stage twice"),
    (("run", ("firs",)), "'firs', which is not in config.stages; did you mean `first`"),
    (("seed", -1), "seed=-1 must be at least 0"),
    (("log_every", 0), "log_every=0 must be at least 1"),
    (("checkpoint.every", 0), "checkpoint.every=0 must be at least 1"),
    (("checkpoint.keep", -1), "checkpoint.keep=-1 must be at least 1"),
    (("model.vision", "clip_l14"), "clip_l14' is not a known architecture; did you mean `clip_l14_"),
    (("model.llm", "vicuna_7b"), "vicuna_7b' is not a known architecture; did you mean `vicuna_7b_v1"),
    (("model.select_layer", -26), "select_layer=-26 does not exist in a ViT of 24 blocks"),
    (("model.select_layer", 25), "select_layer=25 does not exist"),
    (("model.dtype", "float16"), "float16' is not one of float32, bfloat16"),
    (("model.feature_dtype", "bf16"), "bf16' is not one of"),
    (("model.remat", "all"), "all' is not one of full, save_context, .*, none"),
    (("model.attention", "flash"), "flash' is not one of auto, xla, splash, cudnn"),
    (("stages.first.steps", -1), "steps=-1 must be at least 0"),
    (("stages.first.steps", 0), "steps must be set: scenes are endless"),
    (("stages.first.epochs", 0), "epochs=0 must be at least 1"),
    (("stages.first.batch", 0), "batch=0 must be at least 1"),
    (("stages.first.accumulation", 0), "accumulation=0 must be at least 1"),
    (("stages.first.accumulation", 3), "batch=128 is not a multiple of accumulation=3"),
    (("stages.first.loss_chunks", 0), "loss_chunks=0 must be at least 1"),
    (("stages.first.loss_chunks", 3), "length=2048 is not a multiple of loss_chunks=3"),
    (("stages.first.fresh", ("lm",)), "lm' is not one of vision, projector, llm"),
    (("stages.first.learning_rates", ()), "learning_rates is empty"),
    (("stages.first.learning_rates", (("(", 1.0),)), "'\\(' is not a regular expression"),
    (("stages.first.learning_rates", ((".*", 0.0),)), "rate 0.0; write None to freeze it"),
    (("stages.first.learning_rates", ((".*", float("nan")),)), "rate nan"),
    (("stages.first.learning_rates", ((".*", float("inf")),)), "rate inf"),
    (("stages.first.data.source", "scene"), "scene' is not one of files, scenes; did you mean `scenes`"),
    (("stages.first.data.source", "files"), "data.path .* or data.mixture must be set"),
    (("stages.first.data.mixture", (("a.json", "images", 0.0),)), "the weight of 'a.json' must be positive, not 0.0"),
    (("stages.first.data.mixture", (("a.json", "images", float("nan")),)), "must be positive, not nan"),
    (("stages.first.data.mixture", (("a.json", 1.0),)), r"mixture\[0\] must have 3 items, not 2"),
    (
        ("stages.first.data.scenes", "captions"),
        "captions' is not one of caption, study, tell, instruct; did you mean `caption`",
    ),
    (("stages.first.data.aspect", "square"), "square' is not one of crop, pad"),
    (("stages.first.data.overlong", "drop"), "drop' is not one of truncate, error"),
    (("stages.first.data.length", 0), "length=0 must be at least 1"),
    (("stages.first.data.packing", "packed"), "packed' is not one of none, pack; did you mean `pack`"),
    (("stages.first.data.packing", "pack"), "need samples with known lengths; scenes are endless"),
    (("stages.first.data.lengths", (512,)), "need samples with known lengths; scenes are endless"),
    (("stages.first.data.lengths", (512, 256)), r"lengths=\(512, 256\) must ascend, from 1 to below data.length=2048"),
    (("stages.first.data.lengths", (2048,)), "must ascend, from 1 to below data.length=2048"),
    (("stages.first.data.lengths", (0,)), "must ascend, from 1 to below"),
    (("stages.first.data.bad", "skip"), "skip' is not one of error, replace"),
    (("stages.first.data.bad_ceiling", -0.1), "bad_ceiling=-0.1 must be at least 0"),
    (("stages.first.data.workers", -1), "workers=-1 must be at least 0"),
    (("stages.first.data.max_images", -1), "max_images=-1 must be at least 0"),
    (("stages.first.data.threads", -1), "threads=-1 must be at least 0"),
    (("stages.first.data.held_out", 1.0), "held_out=1.0 must be below 1"),
    (("stages.first.data.held_out", -0.1), "held_out=-0.1 must be at least 0"),
    (("stages.first.optimizer.schedule", "linear"), "linear' is not one of cosine, constant"),
    (("stages.first.optimizer.warmup_ratio", 1.5), "warmup_ratio=1.5 must be below 1"),
    (("stages.first.optimizer.b1", 1.0), "b1=1.0 must be below 1"),
    (("stages.first.optimizer.clip", float("nan")), "clip=nan must be at least 0, and finite"),
    (("stages.first.eval.samples", 0), "samples=0 must be at least 1"),
    (("stages.first.eval.questions", -1), "questions=-1 must be at least 0"),
    (("stages.first.eval.max_new_tokens", 0), "max_new_tokens=0 must be at least 1"),
]


@pytest.mark.parametrize("setting, message", RANGES, ids=[f"{p}={v}" for (p, v), _ in RANGES])
def test_a_value_out_of_range_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(*setting))


def test_row_lengths_exclude_packing_and_are_multiples_of_loss_chunks():
    c = changed("stages.first.data.lengths", (512,))
    c.stages.first.data.source, c.stages.first.data.path, c.stages.first.data.image_folder = "files", "a", "b"
    from_config_dict(c)
    c.stages.first.data.packing = "pack"
    with pytest.raises(ConfigError, match="data.lengths needs packing=none: packed rows all have data.length tokens"):
        from_config_dict(c)
    c.stages.first.data.packing, c.stages.first.data.lengths, c.stages.first.loss_chunks = "none", (514,), 4
    with pytest.raises(ConfigError, match="data.lengths=514 is not a multiple of loss_chunks=4"):
        from_config_dict(c)


@pytest.mark.parametrize("setting", [("data.max_images", 0), ("eval.samples", 1)])
def test_shuffled_evaluation_needs_images_and_two_samples(setting):
    c = changed(f"stages.first.{setting[0]}", setting[1])
    c.stages.first.eval.shuffled = True
    with pytest.raises(ConfigError, match="eval.shuffled needs images, and at least 2 eval.samples"):
        from_config_dict(c)


def test_a_mixture_allows_packing_but_no_length_buckets():
    c = changed("stages.first.data.packing", "pack")
    c.stages.first.data.source, c.stages.first.data.mixture = "files", (("a.json", "images", 1.0),)
    from_config_dict(c)
    c.stages.first.data.packing, c.stages.first.data.lengths = "none", (512,)
    with pytest.raises(
        ConfigError, match="data.lengths does not support a mixture, which is endless; use packing=pack"
    ):
        from_config_dict(c)


def test_scene_kinds_match_the_scene_source():
    for kind in scenes.KINDS:
        from_config_dict(changed("stages.first.data.scenes", kind))
    with pytest.raises(ConfigError, match=f"is not one of {', '.join(scenes.KINDS)}$"):
        from_config_dict(changed("stages.first.data.scenes", "qqq"))


def test_unused_stage_may_lack_data_but_is_validated():
    c = small()
    c.stages.later = config.stage(learning_rates=((".*", 1e-5),))
    assert list(from_config_dict(c).stages) == ["first"]
    c.stages.later.batch = 0
    with pytest.raises(ConfigError, match="stages.later.batch=0"):
        from_config_dict(c)


def test_stage_refuses_unknown_settings():
    assert config.stage(batch=8).batch == 8
    with pytest.raises(ConfigError, match="a stage has no setting `bach`; did you mean `batch`"):
        config.stage(bach=8)


@pytest.mark.parametrize("layer, used", [(-2, 23), (-1, 24), (0, 0), (24, 24), (-25, 0)])
def test_model_names_resolve_to_shapes(layer, used):
    shapes = model_config(Model(select_layer=layer))
    assert shapes.vision.blocks_used == used and shapes.llm == architectures.LLM["vicuna_7b_v1.3"]
    assert shapes.vision == dataclasses.replace(architectures.VISION["clip_l14_224"], select_layer=layer)


BF16, F32 = dict(dtype="bfloat16", llm="tiny"), dict(dtype="float32", llm="tiny")


@pytest.mark.parametrize(
    "requested, platform, model, expected",
    [
        ("auto", "tpu", BF16, "splash"),
        ("auto", "cuda", BF16, "cudnn"),
        ("auto", "rocm", BF16, "xla"),
        ("auto", "cpu", BF16, "xla"),
        ("auto", "tpu", F32, "xla"),  # the kernels compute in bfloat16
        ("auto", "cuda", F32, "xla"),
        ("auto", "cuda", BF16 | dict(llm="wide heads"), "xla"),
        ("auto", "tpu", BF16 | dict(llm="wide heads"), "splash"),
        ("xla", "tpu", BF16, "xla"),
        ("splash", "tpu", BF16, "splash"),
        ("cudnn", "cuda", BF16, "cudnn"),
        ("splash", None, BF16, "xla"),  # a model trained on a TPU, loaded on a laptop
        ("splash", "cpu", BF16, "attention='splash' does not run on cpu; use auto or xla"),
        ("splash", "cuda", BF16, "does not run on cuda"),
        ("cudnn", "rocm", BF16, "does not run on rocm"),
        ("splash", "tpu", F32, "computes in bfloat16, not in model.dtype='float32'"),
        ("cudnn", "cuda", BF16 | dict(llm="wide heads"), "head size up to 128 .* not the 256 of wide heads"),
    ],
)
def test_attention_kernel_depends_on_platform_dtype_and_head_size(requested, platform, model, expected, monkeypatch):
    wide = dataclasses.replace(architectures.LLM["tiny"], head_size=256)
    monkeypatch.setitem(architectures.LLM, "wide heads", wide)
    model = Model(attention=requested, **model)
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            model_config(model, platform)
    else:
        assert model_config(model, platform).attention == expected


def test_every_value_is_listed_with_its_origin():
    c = small()
    c.seed = 7  # set by the file
    c.log_every = 10  # set by the file, to the default
    c.stages.first.batch = 32
    overrides = {"stages.first.steps": 3, "load": {"llm": "x"}}
    lines = describe_values(from_config_dict(c), overrides, "my.py")
    assert len(lines) == len(set(lines)) == len(flatten(from_config_dict(c)))
    for line in (
        "seed = 7  (my.py)",
        "log_every = 10  (default)",
        "run = ('first',)  (my.py)",
        "model.llm = 'vicuna_7b_v1.3'  (default)",
        "stages.first.batch = 32  (my.py)",
        "stages.first.steps = 3  (command line)",
        "stages.first.epochs = 1  (default)",
        "stages.first.data.source = 'scenes'  (my.py)",
        "stages.first.data.length = 2048  (default)",
        "load.llm = ''  (command line)",
    ):
        assert line in lines
