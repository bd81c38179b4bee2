"""`llava_jax.load`: its imports, and the old names of its options."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llava_jax
from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.native.workdir_model import save_workdir_model
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.errors import DataError, renamed_keywords
from tests.fixtures.tiny_models import random_params, uneven

ROOT = Path(__file__).parents[2]
LOADS = """
import sys
import llava_jax
assert not {"numpy", "jax", "flax"} & set(sys.modules), "import llava_jax imports jax, which takes seconds"
llava_jax.load(sys.argv[1])
training = {name for name in sys.modules if name.split(".")[0] in ("optax", "grain") or "llava_jax.train" in name}
assert not training, training
"""


def test_load_imports_no_training_modules(tmp_path):
    """Loads a workdir, which imports Orbax."""
    config = uneven(llm=dict(vocab_size=512))
    tokenizer = open_tokenizer("tiny")
    save_workdir_model(
        tmp_path / "own", random_params(config), config, tokenizer, None, "vicuna_v1", "crop", 500, False
    )
    command = [sys.executable, "-c", LOADS, tmp_path / "own"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_old_option_names_still_work(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")  # an empty file is called empty
    for function in (llava_jax.load, open_external):
        assert "allow_pickle" in inspect.signature(function).parameters
        with pytest.warns(DeprecationWarning, match="pickles_allowed= is now allow_pickle="):
            with pytest.raises(DataError, match="pytorch_model.bin cannot be read as weights"):
                function(tmp_path, pickles_allowed=True)
        with pytest.raises(DataError, match="pytorch_model.bin is a pickle"):
            function(tmp_path)
    assert "stream" in inspect.signature(LlavaModel.chat).parameters

    class Model:
        @renamed_keywords(is_streamed="stream")
        def chat(self, messages, *, stream=False):
            return messages, stream

    with pytest.warns(DeprecationWarning, match=r"chat\(\): is_streamed= is now stream=") as caught:
        assert Model().chat([1], is_streamed=True) == ([1], True)
    assert caught[0].filename == __file__, "the warning points to the caller's line"
    with pytest.raises(TypeError, match="stream= and is_streamed="):
        Model().chat([1], is_streamed=True, stream=True)
