"""A batch answers each prompt as if it were alone."""

import dataclasses

import jax
import numpy as np
import pytest

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import ConfigError, DataError, TooLong
from llava_jax.inference.decode import decode_view
from llava_jax.inference.engine import GenerationConfig, Prompt, bucket, generate, padded_rows
from llava_jax.runtime.mesh import make_mesh
from llava_jax.text.tokenizer import train_tokenizer
from tests.fixtures.decoding import CONFIG, IMAGE, MODEL, UNUSED, compilations, decoding_params, pictures, variant

PIXELS = pictures(9)
PROMPTS = [
    Prompt([1, *IMAGE, 5, 6, 7], PIXELS[:1], row=0),
    Prompt([1, 8], row=1),
    Prompt([1, *IMAGE, 9, *IMAGE, 10, 11], PIXELS[1:3], row=2),
    Prompt([1, 12, 13, 14, *IMAGE], PIXELS[3:4], row=3),
    Prompt([1, *IMAGE, *IMAGE, *IMAGE, 15], PIXELS[4:7], row=4),
    Prompt([1], row=5),
    Prompt([1, *range(20, 32)], row=6),
    Prompt([1, 16, *IMAGE, 17, *IMAGE], PIXELS[7:], row=7),
]
GREEDY = GenerationConfig((UNUSED,), max_new_tokens=8)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.9, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def params():
    return decode_view(decoding_params(MODEL))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Ids from 4 on are bytes; the model knows the ids below 64: punctuation, digits and letters."""
    return train_tokenizer(["ab"], 260, tmp_path_factory.mktemp("tokenizer"))


def ids(answers) -> list[list[int]]:
    return [answer.ids for answer in answers]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_mixed_batch_equals_single_prompts(params, settings):
    together = generate(MODEL, params, PROMPTS, settings)
    alone = [generate(MODEL, params, [prompt], settings)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({tuple(answer.ids) for answer in together}) == 8, "different prompts, different answers"
    for answer in together:  # a sampled answer may end early
        assert answer.finish == ("stop" if answer.ids[-1] == UNUSED else "length")
        assert len(answer.ids) == 8 or answer.finish == "stop"


def test_samples_do_not_depend_on_row_order(params):
    backwards = generate(MODEL, params, PROMPTS[::-1], SAMPLED)
    assert backwards[::-1] == generate(MODEL, params, PROMPTS, SAMPLED)


def test_samples_repeat_per_seed_and_differ_by_seed_and_row(params):
    first = ids(generate(MODEL, params, PROMPTS, SAMPLED))
    assert first == ids(generate(MODEL, params, PROMPTS, SAMPLED))
    assert first != ids(generate(MODEL, params, PROMPTS, dataclasses.replace(SAMPLED, seed=4)))
    several = ids(generate(MODEL, params, [PROMPTS[0]._replace(row=n) for n in range(6)], SAMPLED))
    assert several[0] == first[0] and len({tuple(answer) for answer in several}) > 3


def test_text_is_that_of_the_ids(params, tokenizer):
    for answer in generate(MODEL, params, PROMPTS, SAMPLED, tokenizer):
        assert answer.text == tokenizer.decode(id for id in answer.ids if id != UNUSED)


def test_stop_id_is_kept_in_ids_but_not_in_text(params, tokenizer):
    free = generate(MODEL, params, PROMPTS, GREEDY, tokenizer)
    stop = free[0].ids[2]
    for answer, unstopped in zip(generate(MODEL, params, PROMPTS, _with_stop(stop), tokenizer), free, strict=True):
        end = unstopped.ids.index(stop) + 1 if stop in unstopped.ids else len(unstopped.ids)
        assert answer.ids == unstopped.ids[:end]
        assert answer.finish == ("stop" if stop in unstopped.ids else "length")
        assert answer.text == tokenizer.decode(id for id in answer.ids if id != stop)


def _with_stop(stop: int) -> GenerationConfig:
    return dataclasses.replace(GREEDY, stop_ids=(UNUSED, stop))


@pytest.mark.parametrize("start, length", [(0, 2), (1, 3), (3, 2)])
def test_stop_string_over_several_tokens_ends_the_answer(params, tokenizer, start, length):
    """Also after more tokens than one round of steps: max_new_tokens is 40."""
    settings = dataclasses.replace(GREEDY, max_new_tokens=40)
    free = generate(MODEL, params, PROMPTS, settings, tokenizer)
    for row in (0, 4):
        stop = free[row].text[start : start + length]
        stopping = dataclasses.replace(settings, stop_strings=(stop, "nowhere"))
        for answer, unstopped in zip(generate(MODEL, params, PROMPTS, stopping, tokenizer), free, strict=True):
            assert answer.text == unstopped.text.split(stop)[0]
            assert answer.finish == ("stop" if stop in unstopped.text else "length")
            if answer.finish == "stop":
                assert tokenizer.decode(answer.ids).endswith(stop), "nothing is generated after it"


def test_decoding_continues_in_rounds_until_a_late_stop_string(params, tokenizer):
    settings = dataclasses.replace(GREEDY, max_new_tokens=40, temperature=1.0)
    free = generate(MODEL, params, PROMPTS[:1], settings, tokenizer)[0]
    stop = free.text[-6:]
    answer = generate(MODEL, params, PROMPTS[:1], dataclasses.replace(settings, stop_strings=(stop,)), tokenizer)[0]
    assert (answer.text, answer.finish, answer.ids) == (free.text[:-6], "stop", free.ids)


def test_last_model_position_ends_the_answer(params):
    long = Prompt([1] * (CONFIG.llm.max_positions - 3))
    answers = generate(MODEL, params, [long, PROMPTS[0]], GREEDY)
    assert [len(answer.ids) for answer in answers] == [3, 8]
    assert answers[0].finish == "length"


@pytest.mark.parametrize("image", [(), PIXELS[:1]], ids=["text", "image"])
def test_hundred_prompts_in_one_bucket_compile_two_programs(params, image):
    rng = np.random.default_rng(0)
    model = variant(norm_eps=2e-5 + 1e-5 * len(image))  # not compiled by another test
    with compilations() as compiled_names:
        for n in range(100):
            prompt = Prompt([1, *rng.integers(4, 60, n % 11), *IMAGE * len(image)], image, row=n)
            settings = GenerationConfig(
                stop_ids=tuple(range(60, 61 + n % 3)), max_new_tokens=1 + n % 5, temperature=0.1 * (n % 7),
                top_k=n % 9, top_p=1 - n / 200, seed=n,
            )  # fmt: skip
            assert len(generate(model, params, [prompt], settings)[0].ids) <= 1 + n % 5
    assert len(compiled_names) == 2, compiled_names


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_mesh_gives_the_same_answers(params, shape):
    expected = generate(MODEL, params, PROMPTS[:3], SAMPLED)
    assert generate(MODEL, params, PROMPTS[:3], SAMPLED, mesh=make_mesh(*shape)) == expected


def test_bfloat16_single_and_batched_answers_agree(params):
    model = variant("bfloat16")
    weights = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    alone = [generate(model, weights, [prompt], GREEDY)[0] for prompt in PROMPTS[:2]]
    assert generate(model, weights, PROMPTS, GREEDY)[:2] == alone


def test_lengths_and_rows_fall_into_buckets():
    assert [bucket(n) for n in (1, 16, 17, 100, 128, 130, 1100)] == [16, 16, 32, 112, 128, 160, 1280]
    for n in range(1, 5000):
        assert n <= bucket(n) < n * 1.25 + 16
    assert [padded_rows(n, "float32", None) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert padded_rows(1, "bfloat16", None) == 2
    assert padded_rows(1, "float32", make_mesh(2, 2, 2)) == 4


def test_no_prompts_give_no_answers(params):
    assert generate(MODEL, params, [], GREEDY) == []


@pytest.mark.parametrize(
    "prompt, message",
    [
        (Prompt([]), "prompt 1 has 0 tokens"),
        (Prompt([1] * 64), "prompt 1 has 64 tokens; the model takes 1 to 63"),
        (Prompt([1, *IMAGE]), r"prompt 1 has 0 image\(s\) of 4 features, but 4 placeholder"),
        (Prompt([1, *IMAGE[1:]], PIXELS[:1]), r"prompt 1 has 1 image\(s\) of 4 features, but 3 placeholder"),
        (Prompt([1, 64]), "prompt 1 has token ids from 1 to 64, but the model's vocabulary ends at 63"),
        (Prompt([1, -1]), "prompt 1 has token ids from -1 to 1"),
        (Prompt([1, *IMAGE], PIXELS[:1, :12]), r"an image is uint8\[12, 24, 3\]; the model takes uint8\[24, 24, 3\]"),
    ],
)
def test_invalid_prompt_error_names_the_prompt(params, prompt, message):
    assert CONFIG.vision.features == 4 and IMAGE_TOKEN_ID == -200
    with pytest.raises(DataError, match=message) as fault:
        generate(MODEL, params, [PROMPTS[1], prompt], GREEDY)
    assert (fault.type is TooLong) == (len(prompt.tokens) >= CONFIG.llm.max_positions)


@pytest.mark.parametrize(
    "change",
    [
        dict(max_new_tokens=0), dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0),
        dict(top_p=1.5), dict(seed=-1), dict(seed=2**32), dict(stop_strings=("",)), dict(stop_ids=(-1,)),
    ],
    ids=str,
)  # fmt: skip
def test_out_of_range_setting_raises(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(GREEDY, **change)


def test_stop_strings_need_a_tokenizer(params):
    with pytest.raises(ConfigError, match="tokenizer"):
        generate(MODEL, params, PROMPTS, dataclasses.replace(GREEDY, stop_strings=("#",)))
