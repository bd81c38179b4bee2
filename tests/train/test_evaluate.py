"""evaluate.py: whose images a held-out text is read with."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Data, Eval, Stage
from llava_jax.config.architectures import IMAGE_TOKEN_ID, VISION
from llava_jax.data.example import Example
from llava_jax.errors import DataError
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train import evaluate
from llava_jax.train.evaluate import BLANK, Speaker, held_out_loss


class Held:
    """Row i: token 10 + i, one image of colour `colours[i]` (0: a text alone). `asked` are the rows that were read."""

    def __init__(self, colours: list[int], readable: bool = True):
        self.colours, self.readable, self.asked = colours, readable, []

    def __len__(self):
        return len(self.colours)

    def row(self, i):
        self.asked.append(i)
        tokens = [10 + i, IMAGE_TOKEN_ID if self.colours[i] else 3, 7]
        return {
            "tokens": np.array(tokens, np.int32),
            "target_mask": np.array([False, False, self.readable]),
            "images": np.full((1, 2, 2, 3), self.colours[i], np.uint8),
            "replaced": [{"reason": "sample 'x': gone"}] * (i == 1 or not self.readable),
        }


def measure(held_out: Held, shuffled: bool, samples: int = 99) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """(the result, (text, colour) of every row that counted)."""
    pairs = []

    def eval_step(params, batch):
        rows = zip(batch["tokens"][:, 0], batch["images"][:, 0, 0, 0, 0], batch["target_mask"].any(1), strict=True)
        found = [(int(t), int(c)) for t, c, counts in rows if counts]
        pairs.extend(found)
        return sum(t * c for t, c in found), len(found)

    stage = Stage(batch=4, accumulation=2, eval=Eval(samples=samples, shuffled=shuffled))
    speaker = Speaker(None, {}, stage, None, make_mesh(1, 1, 1, jax.devices()[:1]), lambda: False)
    return held_out_loss(eval_step, speaker, SimpleNamespace(held_out=held_out)), pairs


def test_shuffled_is_every_text_once_with_an_image_that_is_not_its_own():
    colours = [20, 20, 21, 22, 22, 0, 23, 99]  # neighbours share pictures; one text has none
    result, pairs = measure(Held(colours), shuffled=True, samples=7)
    assert result.keys() == {"val/loss", "val/loss_blank", "val/loss_shuffled", "val/replaced"}
    own = [(10 + i, c) for i, c in enumerate(colours[:7])]
    assert sorted(p for p in pairs if p in own) == own
    assert sum(c == BLANK[0] for _, c in pairs) == 7
    others = [p for p in pairs if p not in own and p[1] != BLANK[0]]
    assert sorted(t for t, _ in others) == [10, 11, 12, 13, 14, 16], "the text alone does not count"
    assert {c for _, c in others} <= {20, 21, 22, 23} and len({c for _, c in others}) > 2
    assert result["val/loss_shuffled"] == pytest.approx(sum(t * c for t, c in others) / 6)
    assert result["val/replaced"] == 1, "counted once, not in every pass"


def test_where_there_is_no_other_image_there_is_no_such_loss():
    result, _ = measure(Held([20, 20, 20]), shuffled=True)
    assert "val/loss_shuffled" not in result and result["val/loss"] > 0


def test_without_it_no_row_is_read_again():
    held_out = Held([20, 21, 22, 23, 24, 25, 26])
    result, _ = measure(held_out, shuffled=False)
    assert "val/loss_shuffled" not in result
    assert len(held_out.asked) == 8, "one more for the shape of the filler"


def test_samples_that_share_an_id_are_asked_their_own_questions(monkeypatch):
    monkeypatch.setattr(evaluate, "decode_view", lambda params: None)
    monkeypatch.setattr(evaluate, "greedy", lambda model, view, batch, stops, count: batch["tokens"])  # an echo
    stage = Stage(batch=2, data=Data(template="vicuna_v1", max_images=0))
    model = SimpleNamespace(config=SimpleNamespace(vision=VISION["tiny"]))
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    speaker = Speaker(model, {}, stage, open_tokenizer("tiny"), mesh, lambda: False)
    questions = ("where is the red circle ?", "how many objects are there ?")
    asked = evaluate.answer(speaker, [Example("1", (("human", q), ("gpt", "x")), ()) for q in questions], blank=False)
    assert all(q in text for q, text in zip(questions, asked, strict=True))


def test_held_out_samples_of_which_none_can_be_read_are_an_error():
    with pytest.raises(DataError, match="not one of 2 held-out samples can be read; sample 'x': gone"):
        measure(Held([20, 21], readable=False), shuffled=False)
