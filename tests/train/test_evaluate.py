"""evaluate.py: whose images a held-out text is read with."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llava_jax.config import Eval, Stage
from llava_jax.sharding import make_mesh
from llava_jax.train.evaluate import BLANK, Speaker, held_out_loss


class Held:
    """Row i: token 10 + i with an image of colour 10 + i. `asked` are the rows that were read."""

    def __init__(self, count: int):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def row(self, i):
        self.asked.append(i)
        return {
            "tokens": np.full(3, 10 + i, np.int32),
            "images": np.full((1, 2, 2, 3), 10 + i, np.uint8),
            "replaced": [{}] * (i == 1),
        }


def measure(samples: int, shuffled: bool) -> tuple[dict[str, float], list[tuple[int, int]], Held]:
    """(the result, (token, colour) of every row that the model read, the data)."""
    pairs = []

    def eval_step(params, batch):
        found = [(int(t), int(c)) for t, c in zip(batch["tokens"][:, 0], batch["images"][:, 0, 0, 0, 0], strict=True)]
        pairs.extend(pair for pair in found if pair[0])  # without filler
        return sum(t * c for t, c in found), len(found)

    stage = Stage(batch=4, accumulation=2, eval=Eval(samples=samples, shuffled=shuffled))
    held_out = Held(7)
    speaker = Speaker(None, {}, stage, None, make_mesh(1, 1, 1, jax.devices()[:1]), lambda: False)
    return held_out_loss(eval_step, speaker, SimpleNamespace(held_out=held_out)), pairs, held_out


def test_shuffled_is_every_text_once_with_another_s_image_and_every_image_once():
    result, pairs, _ = measure(5, shuffled=True)
    assert result.keys() == {"val/loss", "val/loss_blank", "val/loss_shuffled", "val/replaced"}
    texts = list(range(10, 15))
    own = [p for p in pairs if p[0] == p[1]]
    blank = [p for p in pairs if p[1] == BLANK[0]]
    others = [p for p in pairs if p not in own and p not in blank]
    assert sorted(own) == [(t, t) for t in texts] and sorted(blank) == [(t, BLANK[0]) for t in texts]
    assert sorted(t for t, _ in others) == sorted(c for _, c in others) == texts
    assert result["val/loss_shuffled"] == pytest.approx(sum(t * c for t, c in others) / 6)  # one row is filler
    assert result["val/replaced"] == 1, "counted once, not in every pass"


def test_without_it_no_row_is_read_again():
    result, _, held_out = measure(7, shuffled=False)
    assert "val/loss_shuffled" not in result and sorted(held_out.asked)[-7:] == list(range(7))
    assert len(held_out.asked) == 8, "one more for the shape of the filler"
