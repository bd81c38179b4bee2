"""The examples of README and docs/architecture.md run unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import README, ROOT, blocks, read


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A writable folder that looks like a checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("llava_jax", "configs", "docs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(arguments: list[str], folder: Path) -> str:
    """Runs a command in `folder`; its output. It compiles as the tests do: fast, to slow programs."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "PYTHONPATH": str(ROOT)}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# What `<!-- run with few steps -->` adds to a training command.
FEW_STEPS = "--config.stages.stage2.eval.questions=0 --config.checkpoint.keep=1" + "".join(
    f" --config.stages.{stage}.{setting}"
    for stage in ("stage1", "stage2")
    for setting in ("steps=2", "eval.samples=32")
)


def test_marked_readme_blocks_run(checkout):
    marked = [block for block in blocks(read(README)) if block.marker]
    assert [block.language for block in marked] == ["bash", "python", "bash"]
    for marker, language, code in marked:
        flags = {"run": "", "run with few steps": f" {FEW_STEPS}"}[marker]
        code = code.removeprefix("pip install -e . && ")  # installing needs the network
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", code.strip() + flags]
        assert run(command, checkout)
    assert (checkout / "quickstart-hf" / "config.json").is_file()


EXAMPLES = [block.code for block in blocks(read(ROOT / "docs" / "architecture.md")) if block.marker]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_architecture_example_runs_in_a_fresh_process(number, checkout):
    code = EXAMPLES[number]
    assert 10 <= len(code.splitlines()) <= 40
    run([sys.executable, "-c", code], checkout)


def test_architecture_has_an_example_of_each_extension():
    sections = re.findall(r"^## Add an? (\w+)\n(.*?)(?=^## |\Z)", read(ROOT / "docs" / "architecture.md"), re.M | re.S)
    assert [name for name, _ in sections] == ["template", "source", "task", "architecture"]
    assert all(any(block.marker for block in blocks(text)) for _, text in sections)
