"""Packed samples do not influence each other: results equal those of one sample per row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.rows import RowFormat
from llava_jax.models.clip import normalize
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.text.token_row import Batch, EncodedExample, stack_rows
from llava_jax.train.loss import count_targets, predicts_target, token_losses
from tests.fixtures.tiny_models import EVEN, random_params

FEATURES = EVEN.vision.features  # 4
LENGTH, SLOTS = 192, 18


class Pad:
    pad_id = 0


FORMAT = RowFormat(Pad(), "plain", LENGTH, SLOTS, FEATURES, EVEN.vision.image_size, "pad", "error")
MODEL = Llava(EVEN)
PARAMS = nested(random_params(EVEN))


def segment(rng, images: int) -> EncodedExample:
    """3 to 9 text tokens with images in between; every token but the placeholders is a target, also the first."""
    length = int(rng.integers(3, 10))
    at = np.sort(rng.integers(0, length + 1, images))
    ids = np.insert(rng.integers(3, 512, length), np.repeat(at, FEATURES), IMAGE_TOKEN_ID).astype(np.int32)
    return EncodedExample(ids, ids != IMAGE_TOKEN_ID, rng.integers(0, 256, (images, 24, 24, 3), dtype=np.uint8))


def batch_of(*rows: list[EncodedExample]) -> Batch:
    return stack_rows([FORMAT.row(segments) for segments in rows])


@jax.jit
def logits(batch):
    return MODEL.apply(
        {"params": PARAMS}, batch.tokens, batch.images, batch.positions, batch.segment_ids
    )  # fmt: skip


def cases():
    rng = np.random.default_rng(0)
    for count in range(1, 7):
        yield [segment(rng, int(rng.integers(0, 4))) for _ in range(count)]
    yield [segment(rng, n) for n in (3, 0, 3, 0, 3, 3)]
    yield [segment(rng, 0) for _ in range(6)]


@pytest.mark.parametrize("segments", cases(), ids=lambda s: "-".join(str(len(s.images)) for s in s))
def test_packed_logits_equal_unpacked_logits(segments):
    together = np.asarray(logits(batch_of(segments)))[0]
    alone = np.asarray(
        logits(batch_of(*[[s] for s in segments], *[[]] * (6 - len(segments))))
    )  # one shape, one compilation
    at, worst = 0, 0.0
    for i, s in enumerate(segments):
        worst = max(worst, np.abs(together[at : at + len(s.ids)] - alone[i, : len(s.ids)]).max())
        at += len(s.ids)
    print(f"{len(segments)} segments, images {[len(s.images) for s in segments]}: max abs difference {worst:.1e}")
    assert worst <= 1e-5
    assert np.abs(together).max() > 1


def test_packed_sample_sees_only_its_own_images():
    rng = np.random.default_rng(1)
    segments = [segment(rng, 1), segment(rng, 2), segment(rng, 1)]
    plain = np.asarray(logits(batch_of(segments)))[0]
    owner = batch_of(segments).segment_ids[0]
    for slot, segment_id in enumerate((1, 2, 2, 3)):
        batch = batch_of(segments)
        batch.images[0, slot] ^= 255
        changed = np.abs(np.asarray(logits(batch))[0] - plain).max(axis=-1) > 0
        assert changed[owner == segment_id].any() and not changed[(owner != segment_id) & (owner > 0)].any()


def test_gradient_between_packed_samples_is_exactly_zero():
    segments = list(cases())[6]
    batch = batch_of(segments)
    images = np.asarray(normalize(jnp.asarray(batch.images)))
    owner, slots = batch.segment_ids[0], np.repeat(np.arange(1, 7), [len(s.images) for s in segments])

    def loss(text, images, segment_id):
        def run(model):
            # the inputs of the language model, with a differentiable offset at every position and pixel
            merged = model.embed(batch.tokens, images) + text
            hidden, _ = model.llm.hidden(merged, batch.positions, batch.segment_ids)
            return model.logits(hidden)

        targets = jnp.roll(batch.tokens, -1, axis=1)
        is_predicted = predicts_target(batch) & (batch.segment_ids == segment_id)
        scores = jax.nn.log_softmax(MODEL.apply({"params": PARAMS}, method=run))
        picked = jnp.take_along_axis(scores, jnp.where(is_predicted, targets, 0)[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(is_predicted, picked, 0))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    offsets = jnp.zeros((1, LENGTH, EVEN.llm.width))
    for segment_id in range(1, 7):
        by_text, by_image = (np.asarray(g)[0] for g in gradient(offsets, images, segment_id))
        assert not by_text[owner != segment_id].any() and not by_image[: len(slots)][slots != segment_id].any()
        assert not by_image[len(slots) :].any()
        assert np.abs(by_text[owner == segment_id]).max() > 1e-4
        assert (slots != segment_id).all() or np.abs(by_image[: len(slots)][slots == segment_id]).max() > 1e-6


def test_first_token_of_a_segment_is_not_predicted():
    batch = Batch(
        tokens=None, positions=None, images=None,
        target_mask=np.array([[0, 1, 1, 1, 1, 0, 1, 1]], bool),
        segment_ids=np.array([[1, 1, 1, 2, 2, 3, 3, 0]]),
    )  # fmt: skip
    #            t:  0  1  2  3  4  5  6  7      position 2 would predict the first token of segment 2
    expected = [[1, 1, 0, 1, 0, 1, 0, 0]]
    np.testing.assert_array_equal(predicts_target(batch), np.array(expected, bool))
    assert float(count_targets(batch)) == 4


def test_packed_loss_is_the_sum_of_unpacked_losses():
    segments = list(cases())[5]
    sum_of = jax.jit(functools.partial(token_losses, MODEL, chunks=4))
    together, alone = batch_of(segments), batch_of(*[[s] for s in segments])
    assert float(count_targets(together)) == float(count_targets(alone)) > 20
    np.testing.assert_allclose(sum_of(PARAMS, together), sum_of(PARAMS, alone), rtol=1e-5)
