"""A model from `llava_jax.load` gives the same logits and answers as transformers from the same folder."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.image_utils import load_image as load_theirs

import llava_jax
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.huggingface.processor import chat_template
from llava_jax.checkpoint.llava.export import save_original
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import DataError
from llava_jax.images.preprocess import preprocess
from llava_jax.inference.engine import GenerationConfig, Prompt, generate
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.text.template_table import TEMPLATES
from llava_jax.text.tokenizer import train_tokenizer
from tests.fixtures.hf_models import hf_llama, hf_llava
from tests.fixtures.tiny_models import random_params, uneven

TOKENIZER = open_tokenizer("tiny")
CONFIG = uneven(llm=dict(vocab_size=512, max_positions=256))


@pytest.fixture(scope="module", params=["mlp2x_gelu", "linear"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llava 01 ä"
    config = dataclasses.replace(CONFIG, projector=request.param)
    save_hf(folder, random_params(config), config, TOKENIZER, "float32")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return llava_jax.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def theirs(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def inputs(folder):
    """Three conversations with one, no and two images; left-padded, as transformers generates."""
    processor = AutoProcessor.from_pretrained(folder)
    pictures = [Image.new("RGB", (30 + 9 * i, 40), (40 * i, 200 - 50 * i, 90)) for i in range(3)]
    prompts = [
        "USER: <image>\nwhat color is the cross ? ASSISTANT:",
        "USER: is there a circle ? ASSISTANT:",
        "USER: <image>\n<image>\nwhich is further left , the red cross or the blue circle ? ASSISTANT:",
    ]
    return processor(text=prompts, images=pictures, padding=True, return_tensors="np")


def torch_inputs(inputs) -> dict:
    return {k: torch.tensor(v) for k, v in inputs.items()}


def test_logits_equal_transformers(ours, theirs, inputs):
    with torch.no_grad():
        expected = theirs(**torch_inputs(inputs)).logits.numpy()
    actual = ours.logits(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    is_token = inputs["attention_mask"] > 0
    assert np.abs(actual[is_token] - expected[is_token]).max() <= 1e-4 * np.abs(expected[is_token]).max()
    assert (actual[is_token].argmax(-1) == expected[is_token].argmax(-1)).all()


def test_32_greedy_tokens_equal_transformers(ours, theirs, inputs):
    with torch.no_grad():
        expected = theirs.generate(**torch_inputs(inputs), max_new_tokens=32, do_sample=False)
    actual = ours.generate(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"], max_new_tokens=32)
    expected = expected.numpy()[:, inputs["input_ids"].shape[1] :]
    assert actual.shape[1] == expected.shape[1]
    ends = [(row == TOKENIZER.eos_id).argmax() + 1 if (row == TOKENIZER.eos_id).any() else 32 for row in expected]
    for a, b, end in zip(actual, expected, ends, strict=True):
        assert a[:end].tolist() == b[:end].tolist()


def test_chat_equals_generate_on_processor_ids(ours, folder):
    processor = AutoProcessor.from_pretrained(folder)
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    parts = [{"type": "image"}, {"type": "text", "text": "what color is the cross ?"}]
    messages = [{"role": "user", "content": parts}]
    processed = processor(text=processor.apply_chat_template(messages), images=[picture], return_tensors="np")
    ids = ours.generate(processed["input_ids"], processed["pixel_values"], max_new_tokens=20)[0]
    expected = TOKENIZER.decode(ids).strip()
    assert ours.chat(messages, [picture], max_new_tokens=20) == expected
    plain = [{"role": "user", "content": "what color is the cross ?"}]
    assert ours.chat(plain, [picture], max_new_tokens=20) == expected, "images precede the first question"
    pieces = list(ours.chat(plain, [picture], max_new_tokens=20, stream=True))
    assert "".join(pieces).strip() == expected and len(pieces) > 1


def test_system_message_gives_the_ids_of_the_processor(ours, folder):
    processor, picture = AutoProcessor.from_pretrained(folder), Image.new("RGB", (50, 40))
    system = {"role": "system", "content": "be brief"}
    parts = [{"type": "image"}, {"type": "text", "text": "what color is the cross ?"}]
    messages = [system, {"role": "user", "content": parts}]
    ids = processor(text=processor.apply_chat_template(messages), images=[picture])["input_ids"][0]
    for content in (parts, "what color is the cross ?"):
        tokens = ours._prompt([system, {"role": "user", "content": content}], [picture]).tokens
        assert np.where(tokens == IMAGE_TOKEN_ID, ours.image_token_id, tokens).tolist() == ids


def test_chat_accepts_image_paths_and_samples_answers(ours, tmp_path):
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    picture.save(tmp_path / "p.png")
    messages = [{"role": "user", "content": "where is it ?"}]
    settings = dict(max_new_tokens=12, temperature=1.0, seed=3)
    assert ours.chat(messages, [tmp_path / "p.png"], **settings) == ours.chat(messages, [picture], **settings)
    assert len({ours.chat(messages, [picture], **settings | {"seed": seed}) for seed in range(6)}) > 1


def test_save_and_load_keep_every_tensor_and_file(ours, folder, tmp_path):
    ours.save(tmp_path / "again", dtype="float32")
    reloaded = llava_jax.load(tmp_path / "again", dtype="float32")
    assert reloaded.config == ours.config and reloaded.image_token_id == ours.image_token_id
    assert reloaded.params.keys() == ours.params.keys()
    for path, value in ours.params.items():
        assert (np.asarray(reloaded.params[path]) == np.asarray(value)).all(), path
    for file in folder.iterdir():
        before, after = file.read_bytes(), (tmp_path / "again" / file.name).read_bytes()
        assert before == after or json.loads(before) == json.loads(after), file.name  # JSON: key order may differ


def test_image_start_and_end_tokens_survive_every_format(tmp_path):
    """`mm_use_im_start_end` survives every format; transformers' processor produces the same ids."""
    markers = ("<im_start>", "<im_end>")
    tokenizer = train_tokenizer(["what is there ? USER: ASSISTANT:"], 300, tmp_path / "words", markers)
    start, end = (tokenizer.special[marker] for marker in markers)
    save_original(tmp_path / "llava", random_params(CONFIG), CONFIG, tokenizer, tmp_path / "words", None)
    config_json = json.loads((tmp_path / "llava" / "config.json").read_text())
    picture, parts = Image.new("RGB", (50, 40)), [{"type": "image"}, {"type": "text", "text": "what is there ?"}]
    messages = [{"role": "user", "content": parts}]
    plain = llava_jax.load(tmp_path / "llava")._prompt(messages, [picture]).tokens
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config_json | {"mm_use_im_start_end": True}))
    first = np.flatnonzero(plain == IMAGE_TOKEN_ID)[0]
    expected = np.insert(plain, [first, first + CONFIG.features], [start, end]).tolist()
    for src, format, dst in (("llava", "hf", "hf"), ("hf", "orbax", "own"), ("own", "llava", "again")):
        ours = llava_jax.load(tmp_path / src)
        assert ours._prompt(messages, [picture]).tokens.tolist() == expected, src
        ours.save(tmp_path / dst, format)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["mm_use_im_start_end"] is True
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    ids = processor(text=processor.apply_chat_template(messages), images=[picture])["input_ids"][0]
    assert [IMAGE_TOKEN_ID if id == ours.image_token_id else id for id in ids] == expected
    (tmp_path / "again" / "tokenizer.json").write_text(TOKENIZER.backend.to_str())
    with pytest.raises(DataError, match="no special token <im_start>"):
        llava_jax.load(tmp_path / "again")._prompt(messages, [picture])


def test_invalid_inputs_raise_with_the_reason(ours, inputs, tmp_path):
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with pytest.raises(DataError, match=r"2 image.s. of 9 features, but .9, 0, 18. image tokens"):
        ours.logits(ids, pixels[:2], inputs["attention_mask"])
    with pytest.raises(DataError, match="input_ids has shape"):
        ours.logits(ids[0], pixels)
    with pytest.raises(DataError, match="pixel_values has shape .3, 3, 12, 12.; .* the tower needs .24, 24."):
        ours.logits(ids, pixels[:, :, ::2, ::2], inputs["attention_mask"])
    picture = Image.new("RGB", (50, 40))
    for messages, images, message in (
        ([], (), "the last message must have the role 'user'"),
        ([{"role": "tool", "content": "be brief"}], (), "message 0 has the role 'tool'"),
        ([{"role": "system", "content": "be brief"}], (), "the last message must have the role 'user'"),
        ([{"role": "user", "content": [{"type": "video"}]}], (), "message 0 has a part that is neither text nor image"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            (),
            "1 image part.s. without a source .* images= has 0",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], (picture, picture), "but images= has 2"),
        ([{"role": "user", "content": "hi"}], (tmp_path / "no.png",), "no.png"),
    ):
        with pytest.raises(DataError, match=message):
            ours.chat(messages, images)


def test_tokenizer_of_another_model_raises(tmp_path):
    config = uneven()
    hf_llava(config, 63).save_pretrained(tmp_path / "it")
    with pytest.raises(DataError, match="the tokenizer has 500 tokens, the weights have 64"):
        llava_jax.load(tmp_path / "it", tokenizer=llava_jax.__path__[0] + "/pretrained/tokenizer")
    (tmp_path / "it" / "config.json").write_text(json.dumps({"auto_map": {}}))
    with pytest.raises(DataError, match="needs custom code"):
        llava_jax.load(tmp_path / "it")


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    """A folder with a language model and a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    hf_llama(CONFIG.llm).save_pretrained(folder)
    for file in TINY_TOKENIZER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_lone_language_model_equals_transformers_and_rejects_images(llm_folder, tmp_path):
    ours = llava_jax.load(llm_folder, dtype="float32")
    theirs = LlamaForCausalLM.from_pretrained(llm_folder).eval()
    ids = np.array([[1, 40, 41, 42, 43], [1, 50, 51, 52, 53]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
        continued = theirs.generate(torch.tensor(ids), max_new_tokens=16, do_sample=False, eos_token_id=511).numpy()
    assert np.abs(ours.logits(ids) - expected).max() <= 1e-4 * np.abs(expected).max()
    actual = ours.generate(ids, max_new_tokens=16)
    assert actual.tolist() == continued[:, 5 : 5 + actual.shape[1]].tolist() and actual.shape[1] > 4
    messages = [{"role": "user", "content": "is there a circle ?"}]
    assert isinstance(ours.chat(messages, max_new_tokens=4), str)
    picture = Image.new("RGB", (50, 40))
    for call in (
        lambda: ours.chat(messages, [picture]),
        lambda: ours.logits(ids, np.zeros((1, 3, 24, 24), np.float32)),
        lambda: ours.generate(np.full((1, 3), ours.image_token_id)),
        lambda: ours.save(tmp_path / "it"),
    ):
        with pytest.raises(DataError, match="a language model alone"):
            call()
    with pytest.raises(DataError, match="1 image.s.; this is a language model alone"):
        generate(
            Llava(ours.config), nested(ours.params), [Prompt([1], [np.zeros((24, 24, 3))])], GenerationConfig((2,))
        )


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_chatml_chat_template_selects_the_chatml_template(llm_folder, tmp_path, file):
    assert llava_jax.load(llm_folder, dtype="float32").template == "vicuna_v1"
    for source in llm_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    template = chat_template("chatml")
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    text = template if file.endswith("jinja") else json.dumps(tokenizer_config | {"chat_template": template})
    (tmp_path / file).write_text(text)
    assert llava_jax.load(tmp_path, dtype="float32").template == "chatml"
    assert llava_jax.load(tmp_path, dtype="float32", template="llava_v1").template == "llava_v1"


def test_answer_stops_at_the_template_separator(ours):
    """Some templates end answers with text instead of a token id."""
    messages = [{"role": "user", "content": "what is it ?"}]
    for template, stops in (("llava_v0", ["###"]), ("plain", ["\n"]), ("vicuna_v1", [])):
        assert template in TEMPLATES
        model = dataclasses.replace(ours, template=template)
        answer = model.chat(messages, max_new_tokens=30, stop=[" "])
        assert [*model.settings().stop_strings] == stops and " " not in answer.strip()


def test_phone_photo_is_turned_as_by_transformers_pipelines(ours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    photo.save(tmp_path / "phone.png", exif=exif)
    expected = preprocess(load_theirs(str(tmp_path / "phone.png")), ours.config.image_size, ours.aspect)
    for image in (tmp_path / "phone.png", str(tmp_path / "phone.png"), Image.open(tmp_path / "phone.png")):
        prompt = ours._prompt([{"role": "user", "content": "what ?"}], [image])
        np.testing.assert_array_equal(prompt.images[0], expected)
