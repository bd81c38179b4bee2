"""The wheel, installed outside the checkout, is complete: every module, the shipped towers and model, all verbs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import child_process
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.package_source import ROOT

HELPS = """
import contextlib, io, sys
from llava_jax.__main__ import main as verb
from llava_jax.main import main as train

for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            code = train(["llava_jax", "--help"]) if command == "llava_jax.main" else verb([*command.split(), "--help"])
        except SystemExit as e:
            code = e.code or 0
    print(command, code, len(output.getvalue().splitlines()) > 3, "jax" in sys.modules, sep=";")
print(sys.modules["llava_jax"].__file__)
"""
QUICKSTART = """
import sys
import llava_jax
from llava_jax.main import main

assert main(["llava_jax", "--config=quickstart.py", "--workdir=run", *sys.argv[1:]]) == 0
print("layers:", llava_jax.load("run").config.llm.layers)
print(llava_jax.__file__)
"""
TINY = """
import json
import llava_jax
from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.serve.examples import SCENES

example = json.loads((SCENES / "examples.json").read_text())[0]
print(example["answer"], llava_jax.load(built_in_model()).chat(example["question"], SCENES / example["image"]), sep=";")
print(llava_jax.__file__)
"""


PROMPTS = """
import llava_jax
from llava_jax.datagen.prompts import read_prompts

print({kind: len(prompt.shots) for kind, prompt in read_prompts().items()})
print(llava_jax.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which pip installed the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes there, and reuses leftovers of earlier builds
    shutil.copytree(ROOT / "llava_jax", source / "llava_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "./source"], folder)
    (wheel,) = (folder / "wheels").glob("llava_jax-*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--target", "site", str(wheel)], folder)
    return folder / "site"


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def run_installed(program: str, arguments: list[str], site: Path, folder: Path, **environment: str) -> list[str]:
    """Runs a Python program with the installed package, whose location it prints last. Returns the other lines."""
    command = [sys.executable, "-c", program, *arguments]
    *lines, location = run(command, folder, PYTHONPATH=str(site), **environment).splitlines()
    assert Path(location).is_relative_to(site)
    return lines


def test_every_folder_of_modules_is_a_package():
    folders = {file.parent for file in (ROOT / "llava_jax").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_file_is_in_the_wheel(installed):
    def files(root: Path) -> set[str]:
        everything = (file.relative_to(root) for file in (root / "llava_jax").rglob("*") if file.is_file())
        return {str(file) for file in everything if "__pycache__" not in file.parts}

    assert files(installed) == files(ROOT)


def test_every_help_runs_without_jax(installed, tmp_path):
    verbs = ["llava_jax.main", *bench_script("import_times").VERBS]
    lines = run_installed(HELPS, verbs, installed, tmp_path)
    assert lines == [f"{verb};0;True;False" for verb in verbs]


def test_two_steps_of_the_quickstart_and_load(installed, tmp_path):
    shutil.copy(ROOT / "configs" / "quickstart.py", tmp_path)
    fast = {name: value for name, value in child_process.TRAINING.items() if name != "PYTHONPATH"}
    stage = ["steps=2", "batch=2", "eval.before=False", "eval.samples=2", "eval.answers=0"]
    flags = ["--config.run=('stage1',)", *(f"--config.stages.stage1.{setting}" for setting in stage)]
    lines = run_installed(QUICKSTART, flags, installed, tmp_path, **fast)
    assert any(line.startswith("stage1 2/2") for line in lines) and lines[-1] == "layers: 4"


def test_shipped_model_answers_an_example(installed, tmp_path):
    (line,) = run_installed(TINY, [], installed, tmp_path)
    truth, answer = line.split(";")
    assert truth == answer != ""


def test_shipped_prompts_are_read(installed, tmp_path):
    (line,) = run_installed(PROMPTS, [], installed, tmp_path)
    assert line == "{'conversation': 2, 'detail': 3, 'reasoning': 3}"


def test_an_import_of_jax_is_detected():
    times = bench_script("import_times")
    assert times.imports_jax(["-c", "import jax"]) and not times.imports_jax(["-c", "import llava_jax"])
