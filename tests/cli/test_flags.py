"""Flags that verbs share: spelling, defaults, and the keywords they become."""

import functools
import inspect
import os
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import tyro

from llava_jax.cli.chat import chat
from llava_jax.cli.convert import convert
from llava_jax.cli.data_inspect import check, show, stats
from llava_jax.cli.flags import DatasetFlags, LoadFlags, SamplingFlags
from llava_jax.cli.serve import serve
from llava_jax.errors import ConfigError

SOURCE = dict(tower=None, base=None, tokenizer=None, template=None, aspect=None, allow_pickle=False)
LOAD = dict(dtype="bfloat16", verbose=False, **SOURCE)
SAMPLING = dict(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=512, seed=0)
ROWS = dict(template="", length=2048, image_size=224, patch_size=14, aspect="crop", exif="ignore")
DATASET = dict(data=Path("d"), image_folder=None, **ROWS)
WORKERS = os.cpu_count()
# By verb: the function, a minimal command line, the values of all parameters.
DEFAULTS = {
    "chat": (
        chat,
        ["m"],
        dict(path=Path("m"), server=None, api_key_file=None, image=(), **LOAD, **SAMPLING),
    ),
    "serve": (
        serve,
        ["m"],
        dict(
            path=Path("m"),
            host="127.0.0.1",
            port=8000,
            slots=8,
            length=2048,
            queue=64,
            prefix_mib=1024,
            api_key_file=None,
            insecure=False,
            drain_seconds=30.0,
            served_model_name=None,
            compile_cache=None,
            data=1,
            fsdp=-1,
            tensor=1,
            **LOAD,
        ),
    ),
    "convert": (
        convert,
        ["a", "b", "--to=hf"],
        dict(src=Path("a"), dst=Path("b"), to="hf", dtype=None, verify=False, verbose=False, **SOURCE),
    ),
    "data check": (
        check,
        ["d"],
        dict(tokenizer=None, max_images=None, report_folder=Path("data-report"), workers=WORKERS, **DATASET),
    ),
    "data show": (
        show,
        ["d", "--tokenizer=t"],
        dict(tokenizer="t", count=16, seed=0, id=(), page=Path("samples.html"), **DATASET),
    ),
    "data stats": (
        stats,
        ["d", "--tokenizer=t"],
        dict(tokenizer="t", count=0, slots=0, page=None, workers=WORKERS, **DATASET),
    ),
}


def parse(verb, args: list[str]) -> dict:
    """The values of all parameters of a verb, without running it; shared flags are flattened."""

    @functools.wraps(verb)
    def record(*positional, **named):
        return inspect.signature(verb).bind(*positional, **named).arguments

    values = tyro.cli(record, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    flat = {}
    for name, value in values.items():
        flat |= vars(value) if is_dataclass(value) else {name: value}
    return flat


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_verb_has_its_parameters_and_defaults(name):
    verb, args, expected = DEFAULTS[name]
    assert parse(verb, args) == expected


@pytest.mark.parametrize("mark", "-_")
@pytest.mark.parametrize("form", ["{}={}", "{} {}"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_flags_accept_dashes_and_underscores(name, form, mark):
    verb, args, expected = DEFAULTS[name]
    flags = {"template": "llava_v1"}
    if "max_new_tokens" in expected:
        flags |= {"max_new_tokens": 7, "top_p": 0.5}
    if "image_size" in expected:
        flags |= {"image_size": 336, "patch_size": 7}
    typed = [form.format("--" + flag.replace("_", mark), value).split() for flag, value in flags.items()]
    switches = ["--allow_pickle".replace("_", mark)] if "allow_pickle" in expected else []
    changed = expected | flags | ({"allow_pickle": True} if switches else {})
    assert parse(verb, [*args, *sum(typed, []), *switches]) == changed


def test_show_and_stats_require_tokenizer(capsys):
    for verb in (show, stats):
        with pytest.raises(SystemExit) as end:
            parse(verb, ["d"])
        assert end.value.code == 2 and "--tokenizer" in capsys.readouterr().err


def test_options_are_keywords_of_load_and_generation_config():
    from llava_jax.api.load import load
    from llava_jax.inference.engine import GenerationConfig

    assert set(LoadFlags().options()) <= set(inspect.signature(load).parameters)
    assert LoadFlags(allow_pickle=True).options() == {**SOURCE, "dtype": "bfloat16", "allow_pickle": True}
    settings = GenerationConfig(
        (), **SamplingFlags(max_new_tokens=3, temperature=0.5, top_p=0.9, top_k=2, seed=1).options()
    )
    assert (settings.max_new_tokens, settings.temperature, settings.seed) == (3, 0.5, 1)


@pytest.mark.parametrize(
    "values, message",
    [(dict(template="vicuna"), "'vicuna'"), (dict(length=0), "--length 0"), (dict(image_size=13), "--image-size 13")],
)
def test_dataset_flags_out_of_range_are_rejected(values, message):
    with pytest.raises(ConfigError, match=message):
        DatasetFlags(Path("d"), **values).check()
    assert DatasetFlags(Path("d"), image_size=336).features == 24 * 24
