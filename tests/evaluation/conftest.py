"""A tiny LLaVA with random weights and a folder of ScienceQA problems."""

from pathlib import Path

import pytest

import llava_jax
from llava_jax.api.model import LlavaModel
from tests.fixtures.scienceqa import write_model, write_problems


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> LlavaModel:
    return llava_jax.load(write_model(tmp_path_factory.mktemp("model") / "tiny"), dtype="float32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_problems(tmp_path_factory.mktemp("sqa"))
