"""Every config builds, its learning rates cover the model, and published ones match the publications."""

import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.cli.train import read_config
from llava_jax.config import flatten, model_config
from llava_jax.data.pipeline import steps_per_run
from llava_jax.models.params import abstract_model
from llava_jax.text.templates import find_template
from llava_jax.train.dataset import open_stage
from llava_jax.train.optimizer import learning_rates_per_parameter
from tests.fixtures.scienceqa import write_folder

ROOT = Path(__file__).parent.parent
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
LINEAR = {"7b": 4_198_400, "13b": 5_248_000}
TWO_LAYERS = {"7b": 20_979_712, "13b": 31_467_520}
DECODER = {"7b": 6_738_415_616, "13b": 13_015_864_320}
MODULES = ("vision", "projector", "llm")
# 336 px has 24 x 24 instead of 16 x 16 learned positions, 1024 wide
VISION = {"clip_l14_224": 303_179_776, "clip_l14_336": 303_179_776 + (24 * 24 - 16 * 16) * 1024}


def load(name: str, *flags: str):
    sys.modules.pop("config_config", None)  # else ml_collections would reuse the module of the previous config
    return read_config(["main", f"--config={ROOT}/configs/{name}.py", *flags])[0]


def sizes(config) -> dict[str, int]:
    return {path: math.prod(x.shape) for path, x in abstract_model(model_config(config.model))[0].items()}


@pytest.mark.parametrize("name", FILES)
def test_config_builds_and_learning_rates_cover_the_model(name):
    config = load(name)
    paths = sizes(config)
    vision = model_config(config.model).vision
    assert config.run and list(config.stages) == list(config.run)
    for stage in config.stages.values():
        assert len(learning_rates_per_parameter(paths, stage.learning_rates)) == len(paths)
        find_template(stage.data.template)
        assert stage.data.max_images * vision.features < stage.data.length


@pytest.mark.parametrize("name", FILES)
def test_docstring_names_command_data_and_steps(name):
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    if name in HYPERPARAMETERS:
        doc = text.split('"""')[1]
        for word in (
            f"python -m llava_jax.main --config=configs/{name}.py",
            "Not run on a pod yet",
            "On disk",
            "steps",
        ):
            assert word in doc
        for path in [v for k, v in flatten(load(name)).items() if k.endswith((".path", ".image_folder", "tokenizer"))]:
            assert path in doc, path


# published row counts of the four data sets; steps here, where a batch may span two epochs; steps of the original
PUBLISHED = [
    ("stage1", 595_375, 4652, 4652, 140),
    ("stage2", 157_712, 14_786, 14_787, 444),
    ("stage1_v1_5", 558_128, 2181, 2181, 66),
    ("stage2_v1_5", 665_298, 5198, 5198, 156),
    ("scienceqa", 12_726, 4773, 4776, 144),
]


@pytest.mark.parametrize("name, rows, steps, original_steps, warmup", PUBLISHED)
def test_published_configs_have_the_published_steps(name, rows, steps, original_steps, warmup):
    (stage,) = load(name).stages.values()
    assert stage.steps == 0 and stage.data.held_out == 0  # the data set determines them
    assert steps_per_run(rows, stage.batch, stage.epochs) == steps
    assert stage.epochs * math.ceil(rows / stage.batch) == original_steps
    assert math.ceil(stage.optimizer.warmup_ratio * steps) == warmup
    assert f"{steps:,}" in (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")


WHOLE = ("stage2", "stage2_v1_5", "scienceqa")  # stages that also train the language model
HYPERPARAMETERS = {
    "stage1": dict(batch=128, epochs=1, rate=2e-3, template="plain", aspect="crop", projector="linear", pixels=224),
    "stage2": dict(batch=32, epochs=3, rate=2e-5, template="vicuna_v1", aspect="crop", projector="linear", pixels=224),
    "stage1_v1_5": dict(
        batch=256, epochs=1, rate=1e-3, template="plain", aspect="crop", projector="mlp2x_gelu", pixels=336
    ),
    "stage2_v1_5": dict(
        batch=128, epochs=1, rate=2e-5, template="vicuna_v1", aspect="pad", projector="mlp2x_gelu", pixels=336
    ),
    "scienceqa": dict(
        batch=32, epochs=12, rate=2e-5, template="vicuna_v1", aspect="crop", projector="linear", pixels=224
    ),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_published_configs_have_the_published_hyperparameters(name):
    config = load(name)
    (stage,) = config.stages.values()
    peak = {rate for _, rate in stage.learning_rates if rate is not None}
    settings = dict(
        batch=stage.batch, epochs=stage.epochs, rate=peak.pop(), template=stage.data.template, aspect=stage.data.aspect,
        projector=config.model.projector, pixels=model_config(config.model).vision.image_size,
    )  # fmt: skip
    assert settings == HYPERPARAMETERS[name] and not peak
    o = stage.optimizer
    assert (o.warmup_ratio, o.schedule, o.weight_decay, o.b1, o.b2, o.eps) == (0.03, "cosine", 0.0, 0.9, 0.999, 1e-8)
    assert (config.model.select_layer, config.model.select_feature, config.model.dtype) == (-2, "patch", "bfloat16")
    assert name not in WHOLE or stage.data.length == 2048
    assert config.tokenizer != "tiny"
    assert not any(flatten(config.load).values())


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("name", [p[0] for p in PUBLISHED])
def test_published_configs_train_the_published_parameter_counts(name, size):
    version = "1.5" if "v1_5" in name else "1.3"
    config = load(name, f"--config.model.llm=vicuna_{size}_v{version}")
    count, projector = sizes(config), (TWO_LAYERS if version == "1.5" else LINEAR)[size]
    total = {module: sum(n for path, n in count.items() if path.startswith(f"{module}/")) for module in MODULES}
    assert total == {"vision": VISION[config.model.vision], "projector": projector, "llm": DECODER[size]}
    (stage,) = config.stages.values()
    trained = {
        path for path, rate in learning_rates_per_parameter(count, stage.learning_rates).items() if rate is not None
    }
    assert sum(count[path] for path in trained) == projector + (DECODER[size] if name in WHOLE else 0)


def test_stage_2_loads_the_projector_of_stage_1():
    for first, second in (("stage1", "stage2"), ("stage1_v1_5", "stage2_v1_5"), ("stage1", "scienceqa")):
        config, next_config = load(first), load(second)
        assert config.model == next_config.model and config.tokenizer == next_config.tokenizer
        saved = config.stages["stage1"].save.projector
        assert f"--config.load.projector={saved}" in (ROOT / "configs" / f"{second}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, prompt_format, target",
    [("scienceqa", "QCM-LEA", " L. E. The answer"), ("scienceqa_smollm2", "QCM-A", " The answer")],
)
def test_scienceqa_targets_follow_the_prompt_format(name, prompt_format, target, tmp_path):
    """Problems without an image are kept; problems with a missing image are replaced, up to the limit."""
    problems = {str(i): {"image": "image.png" if i < 3 else None, "lecture": "L.", "solution": "E."} for i in range(6)}
    folder = write_folder(tmp_path, problems)
    stage = load(name, f"--config.stages.scienceqa.data.path={folder}").stages["scienceqa"]
    assert (stage.data.split, stage.data.prompt_format, stage.data.bad) == ("train", prompt_format, "replace")
    assert stage.data.bad_ceiling == {"scienceqa": 0.001, "scienceqa_smollm2": 1.0}[name]
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, split="test", template="vicuna_v1"))
    data = open_stage("scienceqa", stage, 0, open_tokenizer("tiny"), model_config(load(name).model).vision)
    rows = [data.train.row(i) for i in range(len(data.train))]
    replaced = {record["sample"]: record["substitute"] for row in rows for record in row.replaced}
    assert replaced.keys() == {"0", "1", "2"} and set(replaced.values()) <= {"3", "4", "5"}
    text = open_tokenizer("tiny").decode(rows[0].arrays.tokens[rows[0].arrays.target_mask].tolist())
    assert text.startswith(f"{target} is A.")


@pytest.mark.parametrize("name", ["scienceqa", "scienceqa_smollm2"])
def test_eval_commands_of_the_docstring_parse(name, tmp_path, monkeypatch, capsys):
    """Only the data is missing."""
    monkeypatch.chdir(tmp_path)
    doc = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8").replace("\\\\\n", " ")
    commands = re.findall(r"python -m llava_jax (eval .*)$", doc, re.M)
    for command, message in zip(
        commands, ("problems.json does not exist", "answers.jsonl: cannot be read"), strict=True
    ):
        assert main(command.split()) == 2
        assert message in capsys.readouterr().err
