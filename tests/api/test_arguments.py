"""Every wrong argument of `load`, `chat`, `generate` and `logits` is named, and equivalent forms work alike."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import llava_jax
from llava_jax.api.arguments import dtype_name, sampling_options
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import ConfigError, DataError, UserError
from tests.fixtures.tiny_models import random_params, uneven
from tests.fixtures.tokenizers import TINY

CONFIG = uneven(llm=dict(vocab_size=512, max_positions=256))
IMAGE = np.zeros((1, 3, 24, 24), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments") / "model"
    save_hf(folder, random_params(CONFIG), CONFIG, TINY, "float32")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return llava_jax.load(folder, dtype="fp32")


SETTINGS = {
    "max_new_tokens": [0, -1, 2.0, "3", True, None, [3], float("nan"), np.float32(3)],
    "temperature": [-0.1, "0.5", True, None, float("nan"), float("inf"), [1.0]],
    "top_p": [0, 1.5, "1", True, None, float("nan")],
    "top_k": [-1, 1.5, "1", True, None],
    "seed": [-1, 2**32, 1.0, "1", True, None],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_wrong_type_or_range_are_named(model, name):
    for value in SETTINGS[name]:
        for call in (lambda v: model.chat("hi", **{name: v}), lambda v: model.generate([[1, 5]], **{name: v})):
            with pytest.raises(ConfigError, match=f"^{name}(=| is not a number)"):
                call(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": 3}, "stop=3 is not a list of texts"),
        ({"stop": [3]}, r"stop=\[3\] is not a list of texts"),
        ({"stop": [""]}, "stop_strings"),
        ({"stream": "yes"}, "stream='yes' is not True or False"),
    ],
)
def test_other_options_of_chat_are_named(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.chat("hi", **options)


def test_equivalent_arrays_give_equal_prompts(model):
    ids = [[1, 40, 41], [0, 1, 42]]
    mask = [[1, 1, 1], [0, 1, 1]]
    expected = [[1, 40, 41], [1, 42]]
    for form in (ids, torch.tensor(ids), jnp.array(ids), np.array(ids, np.uint16), tuple(map(tuple, ids))):
        for keeps in (mask, np.array(mask, bool), np.array(mask, np.uint8), torch.tensor(mask)):
            prompts, is_token = model._prompts(form, None, keeps)
            assert [prompt.tokens.tolist() for prompt in prompts] == expected
            assert is_token.astype(int).tolist() == mask
    row = [[1, *[model.image_token_id] * CONFIG.features, 5]]
    for pixels in (IMAGE, IMAGE.tolist(), torch.tensor(IMAGE), IMAGE.astype(np.float64), jnp.bfloat16(IMAGE)):
        (prompt,), _ = model._prompts(row, pixels, None)
        assert prompt.tokens.tolist() == [1, *[IMAGE_TOKEN_ID] * CONFIG.features, 5]
        assert prompt.images.shape == (1, 24, 24, 3) and prompt.images.dtype == np.float32


def test_equivalent_messages_and_settings_are_equal(model):
    expected = model._prompt([{"role": "user", "content": "hi"}]).tokens.tolist()
    for messages in ("hi", {"role": "user", "content": "hi"}, [{"role": "user", "content": ["h", "i"]}]):
        assert model._prompt(messages, None).tokens.tolist() == expected
    numbers = dict(max_new_tokens=np.int64(3), temperature=np.float32(0.5), top_p=1, top_k=np.uint8(4))
    numbers["seed"] = jnp.int32(5)
    stops, options = sampling_options("a", np.True_, **numbers)
    assert (stops, options) == (("a",), dict(max_new_tokens=3, temperature=0.5, top_p=1.0, top_k=4, seed=5))
    assert {type(value) for value in options.values()} == {int, float}
    assert sampling_options(None, False)[0] == () and sampling_options(["a", "b"], False)[0] == ("a", "b")


def ids(*rows):
    return np.array(rows)


ARRAYS = {
    "one row": (ids(1, 2), None, None, r"input_ids has shape \(2,\); it must be \[rows, tokens\]"),
    "no rows": (np.zeros((0, 3), int), None, None, r"input_ids has shape \(0, 3\)"),
    "no tokens": (np.zeros((1, 0), int), None, None, r"input_ids has shape \(1, 0\)"),
    "float": (ids([1.0, 2.0]), None, None, "input_ids holds float64 .* not integers"),
    "bool": (ids([True, False]), None, None, "input_ids holds bool"),
    "text": ("hello", None, None, "input_ids holds <U5"),
    "None": (None, None, None, "input_ids holds object"),
    "ragged": ([[1, 2], [3]], None, None, "input_ids cannot become a NumPy array"),
    "processor's output": ({"input_ids": [[1]]}, None, None, "input_ids is a dict; pass its entry input_ids"),
    "too large": (ids([1, 512]), None, None, r"input_ids\[0, 1\] is 512, but the model has the tokens 0 to 511"),
    "negative": (ids([1, -1]), None, None, r"input_ids\[0, 1\] is -1"),
    "mask of another shape": (ids([1, 2]), None, ids([1]), r"attention_mask has shape \(1, 1\), input_ids has"),
    "mask of floats": (ids([1, 2]), None, ids([1.0, 1.0]), "attention_mask holds float64"),
    "mask of others": (ids([1, 2]), None, ids([1, 2]), "attention_mask has other values than 0 .* and 1"),
    "mask with a gap": (ids([1, 2, 3]), None, ids([1, 0, 1]), "row 0 of attention_mask has .* padding between"),
    "mask of zeros": (ids([1, 2], [1, 2]), None, ids([1, 1], [0, 0]), "row 1 of attention_mask has no tokens"),
    "one image": (ids([1, 2]), IMAGE[0], None, r"pixel_values has shape \(3, 24, 24\); it must be"),
    "channels last": (ids([1, 2]), IMAGE.transpose(0, 2, 3, 1), None, r"pixel_values has shape \(1, 24, 24, 3\)"),
    "tiles": (ids([1, 2]), IMAGE[None], None, r"pixel_values has shape \(1, 1, 3, 24, 24\)"),
    "pixels not normalised": (ids([1, 2]), IMAGE.astype(np.uint8), None, "pixel_values holds uint8"),
    "no numbers": (ids([1, 2]), IMAGE * np.nan, None, "pixel_values has values that are not finite"),
    "pixels as text": (ids([1, 2]), "a.png", None, "pixel_values holds <U5"),
    "too many images": (ids([1, 2]), IMAGE, None, "1 image.s. of 9 features, but .0. image tokens"),
    "gradient": (ids([1, 2]), torch.zeros(1, 3, 24, 24, requires_grad=True), None, "pixel_values cannot become"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_wrong_arrays_are_refused_by_name(model, name):
    input_ids, pixels, mask, message = ARRAYS[name]
    for call in (model.logits, model.generate):
        with pytest.raises(DataError, match=message):
            call(input_ids, pixels, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "path=None is not a path"),
        ({"path": 3}, "path=3 is not a path"),
        ({"path": ""}, "path='' is not a path"),
        ({"tower": 3}, "tower=3 is not a path"),
        ({"base": ["a"]}, r"base=\['a'\] is not a path"),
        ({"tokenizer": object}, "tokenizer=<class 'object'> is not a path"),
        ({"dtype": "int8"}, "dtype='int8' is not one of float32, bfloat16, float16"),
        ({"dtype": 16}, "dtype=.* is not one of float32"),
        ({"dtype": np.float64}, "dtype='float64' is not one of float32"),
        ({"aspect": "anyres"}, "aspect='anyres' is not one of crop, pad"),
        ({"template": ["vicuna_v1"]}, r"template=\['vicuna_v1'\] is not the name of a template"),
        ({"mesh": 1}, "mesh=1 is not a jax.sharding.Mesh"),
    ],
)
def test_wrong_arguments_of_load_are_named(folder, options, message):
    with pytest.raises(UserError, match=message):
        llava_jax.load(**{"path": folder, **options})


def test_dtypes_by_other_names(folder, tmp_path):
    for dtype in ("fp16", "half", "torch.float16", "FP16", np.float16, jnp.float16, torch.float16, np.dtype("float16")):
        assert dtype_name(dtype) == "float16"
    lv = llava_jax.load(folder, dtype=jnp.bfloat16)
    assert lv.config.dtype == "bfloat16" and {x.dtype.name for x in lv.params.values()} == {"bfloat16"}
    lv.save(tmp_path / "again", dtype=torch.float16)
    again = llava_jax.load(tmp_path / "again", dtype=None)
    assert {x.dtype.name for x in again.params.values()} == {"float16"}
    with pytest.raises(ConfigError, match="path=None is not a path"):
        lv.save(None)
