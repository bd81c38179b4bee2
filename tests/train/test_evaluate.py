"""evaluate.py: the images of the held-out loss, and the prompts and answers."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Data, Eval, Stage
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.example import Example
from llava_jax.data.rows import SourceRow
from llava_jax.errors import DataError
from llava_jax.images.preprocess import preprocess
from llava_jax.inference.engine import Generation, GenerationConfig, Prompt, generate
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.runtime.mesh import make_mesh
from llava_jax.text.encode import encode_prompt
from llava_jax.text.token_row import TokenRow
from llava_jax.train import evaluate
from llava_jax.train.evaluate import BLANK, Evaluator, Interrupted, held_out_loss
from llava_jax.train.state import abstract_state
from tests.fixtures.decoding import pictures
from tests.fixtures.tiny_models import changed, random_params


class Held:
    """Row i: token 10 + i, one image of colour `colours[i]`; 0: text only. `rows_read`: indices read so far."""

    def __init__(self, colours: list[int], readable: bool = True):
        self.colours, self.readable, self.rows_read = colours, readable, []

    def __len__(self):
        return len(self.colours)

    def row(self, i):
        self.rows_read.append(i)
        tokens = [10 + i, IMAGE_TOKEN_ID if self.colours[i] else 3, 7]
        at = np.arange(3, dtype=np.int32)
        pixels = np.full((1, 2, 2, 3), self.colours[i], np.uint8)
        row = TokenRow(np.array(tokens, np.int32), np.array([False, False, self.readable]), at, at, pixels)
        return SourceRow(row, [{"reason": "sample 'x': gone"}] * (i == 1 or not self.readable))


def measure(held_out: Held, shuffled: bool, samples: int = 99) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """(the result, (text, colour) of every row with targets)."""
    pairs = []

    def eval_step(params, batch):
        rows = zip(batch.tokens[:, 0], batch.images[:, 0, 0, 0, 0], batch.target_mask.any(1), strict=True)
        counted = [(int(t), int(c)) for t, c, counts in rows if counts]
        pairs.extend(counted)
        return sum(t * c for t, c in counted), len(counted)

    stage = Stage(batch=4, accumulation=2, eval=Eval(samples=samples, shuffled=shuffled))
    evaluator = Evaluator(None, {}, stage, None, MESH, lambda: False)
    return held_out_loss(eval_step, evaluator, held_out), pairs


def test_shuffled_loss_pairs_each_text_with_another_image():
    colours = [20, 20, 21, 22, 22, 0, 23, 99]  # neighbors share images; one text has none
    result, pairs = measure(Held(colours), shuffled=True, samples=7)
    assert result.keys() == {"val/loss", "val/loss_blank", "val/loss_shuffled", "val/replaced"}
    own = [(10 + i, c) for i, c in enumerate(colours[:7])]
    assert sorted(p for p in pairs if p in own) == own
    assert sum(c == BLANK[0] for _, c in pairs) == 7
    others = [p for p in pairs if p not in own and p[1] != BLANK[0]]
    assert sorted(t for t, _ in others) == [10, 11, 12, 13, 14, 16], "the text alone does not count"
    assert {c for _, c in others} <= {20, 21, 22, 23} and len({c for _, c in others}) > 2
    assert result["val/loss_shuffled"] == pytest.approx(sum(t * c for t, c in others) / 6)
    assert result["val/replaced"] == 1, "counted in one pass only"


def test_no_shuffled_loss_without_a_different_image():
    result, _ = measure(Held([20, 20, 20]), shuffled=True)
    assert "val/loss_shuffled" not in result and result["val/loss"] > 0


def test_without_shuffled_no_row_is_read_twice():
    held_out = Held([20, 21, 22, 23, 24, 25, 26])
    result, _ = measure(held_out, shuffled=False)
    assert "val/loss_shuffled" not in result
    assert len(held_out.rows_read) == 8, "one more for the shape of the filler"


# --- answers ----------------------------------------------------------

WIDE = changed(llm=dict(max_positions=512))
MESH = make_mesh(1, 1, 1, jax.devices()[:1])


def question(text: str, *images: Image.Image) -> Example:
    return Example("1", (("human", "<image>" * len(images) + text), ("gpt", "x")), images)


def colour(value: int) -> Image.Image:
    return Image.new("RGB", (30, 24), (value, 0, 0))


def make_evaluator(template: str, batch: int, mesh=MESH, should_stop=lambda: False, **params) -> Evaluator:
    stage = Stage(batch=2 * batch, accumulation=2, data=Data(template=template, max_images=2), eval=Eval())
    params = params or random_params(WIDE)
    return Evaluator(Llava(WIDE), params, stage, open_tokenizer("tiny"), mesh, should_stop)


@pytest.fixture
def echoes(monkeypatch) -> list[tuple]:
    """(prompts, shape) of every batch; its answers are the prompts."""
    batches = []

    def generate(model, view, prompts, settings, tokenizer, mesh, shape):
        batches.append((prompts, shape))
        return [Generation(text=f" {tokenizer.decode([i for i in p.tokens if i >= 0])} ") for p in prompts]

    monkeypatch.setattr(evaluate, "generate", generate)
    return batches


def test_samples_with_equal_ids_get_their_own_questions(echoes):
    questions = ("where is the red circle ?", "how many objects are there ?", "is it blue ?")
    texts = evaluate.answer(make_evaluator("vicuna_v1", 2), [question(q) for q in questions], blank=False)
    assert all(q in text and text == text.strip() for q, text in zip(questions, texts, strict=True))


def test_question_batches_have_one_shape_and_their_own_images(echoes):
    examples = [question("what is it ?", *map(colour, range(i))) for i in (0, 2, 1, 0, 1)]
    evaluate.answer(make_evaluator("plain", 2), examples, blank=False)
    assert [len(prompts) for prompts, _ in echoes] == [2, 2, 1]
    assert {shape for _, shape in echoes} == {(2, 16, 2)}
    colours = [[int(image[0, 0, 0]) for image in prompt.images] for prompts, _ in echoes for prompt in prompts]
    assert colours == [[], [0, 1], [0], [], [0]]


def test_blanked_image_keeps_its_placeholders(echoes):
    evaluate.answer(make_evaluator("plain", 2), [question("what ?", colour(9))], blank=True)
    (((prompt,), _),) = echoes
    assert len(prompt.images) == 1 and (prompt.images[0] == BLANK).all() and prompt.images[0].shape == (24, 24, 3)
    assert (prompt.tokens == IMAGE_TOKEN_ID).sum() == WIDE.features


def test_question_beyond_max_positions_gets_an_empty_answer(echoes):
    texts = evaluate.answer(make_evaluator("vicuna_v1", 2), [question("red " * 600), question("red ?")], blank=False)
    assert texts[0] == "" and texts[1].endswith("red ? ASSISTANT:") and len(echoes) == 1
    assert evaluate.answer(make_evaluator("vicuna_v1", 2), [question("red " * 600)], blank=False) == [""]


def test_should_stop_is_checked_before_every_batch(echoes):
    requests = iter([False, True])
    evaluator = make_evaluator("plain", 1, should_stop=lambda: next(requests))
    with pytest.raises(Interrupted):
        evaluate.answer(evaluator, [question("red ?"), question("blue ?")], blank=False)
    assert len(echoes) == 1


def whole_answer(evaluator: Evaluator, example: Example) -> list[int]:
    """All `max_new_tokens` tokens, without a stop token."""
    template, aspect = evaluator.stage.data.template, evaluator.stage.data.aspect
    ids = encode_prompt(example.turns[:1], 1, tokenizer=evaluator.tokenizer, template=template, features=WIDE.features)
    prompt = Prompt(ids, [preprocess(image, 24, aspect) for image in example.images])
    settings = GenerationConfig((), max_new_tokens=evaluator.stage.eval.max_new_tokens)
    return generate(evaluator.model, nested(evaluator.params), [prompt], settings)[0].ids


@pytest.mark.parametrize("template, end", [("plain", "\n"), ("vicuna_v1", "</s>")])
def test_answers_end_at_the_template_stop_on_any_mesh(template, end):
    evaluator = make_evaluator(template, 4)
    tokenizer = evaluator.tokenizer
    end_id = tokenizer.eos_id if end == "</s>" else tokenizer.encode(end, dummy_prefix=False)[-1]
    examples = [question("what is it ?", Image.fromarray(image)) for image in pictures(3)]
    fifth, head = whole_answer(evaluator, examples[0])[4], evaluator.params["llm/head/kernel"]
    head[:, [fifth, end_id]] = head[:, [end_id, fifth]]  # now the model generates the stop token
    wholes = [whole_answer(evaluator, e) for e in examples]
    assert any(end_id in ids for ids in wholes)
    cut = [itertools.takewhile(lambda i: i not in (end_id, tokenizer.eos_id), ids) for ids in wholes]
    expected = [tokenizer.decode(ids).strip() for ids in cut]
    assert len(set(expected)) > 1
    assert evaluate.answer(evaluator, examples, blank=False) == expected
    with jax.set_mesh(mesh := make_mesh(2, 2, 2)):
        laid_out = abstract_state(WIDE, dict.fromkeys(evaluator.params), optax.identity(), mesh).frozen
        params = {path: jax.device_put(x, laid_out[path].sharding) for path, x in evaluator.params.items()}
        assert evaluate.answer(make_evaluator(template, 4, mesh, **params), examples, blank=False) == expected


def test_two_processes_give_the_answers_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    root = Path(__file__).parents[2]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.train.answering_process", coordinator]

    def start(count: int, index: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, str(count), str(index)], env=env, cwd=root, stdout=subprocess.PIPE, text=True
        )

    runs = [start(2, 0), start(2, 1), start(1, 0)]
    try:
        first, second, alone = (json.loads(run.communicate(timeout=200)[0].splitlines()[-1]) for run in runs)
    finally:
        for run in runs:
            run.kill()
    assert len(set(alone)) == 3 and first == second == alone


def test_held_out_split_without_readable_samples_fails():
    with pytest.raises(DataError, match="none of 2 held-out samples can be read; sample 'x': gone"):
        measure(Held([20, 21], readable=False), shuffled=False)
