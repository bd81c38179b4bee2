"""Held-out loss and greedy answers, with the images or with blanked ones.

A blanked image has CLIP's mean color everywhere, so it shows what the model predicts from the text alone.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.config.schema import Stage
from llava_jax.data.example import Example
from llava_jax.data.pipeline import BatchInfo, evaluation_batches
from llava_jax.data.rows import Rows, SourceRow
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.decode import decode_view
from llava_jax.inference.engine import BatchShape, GenerationConfig, Prompt, bucket, generate
from llava_jax.models.llava import Llava
from llava_jax.models.params import Params, nested
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.encode import encode_prompt
from llava_jax.text.token_row import Batch
from llava_jax.text.tokenizer import Tokenizer

MAX_TRIES = 8  # rows that are tried to find different images
BLANK = np.array((122, 116, 104), np.uint8)  # zero after CLIP's normalization; also LLaVA's padding color


class Interrupted(Exception):
    """The run has to stop in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A model with its weights and the settings of a stage. should_stop: called before every batch."""

    model: Llava
    params: Params
    stage: Stage
    tokenizer: Tokenizer
    mesh: Mesh
    should_stop: Callable[[], bool]

    @property
    def rows(self) -> int:
        """Rows of a global batch: those of a micro-batch, which the train step has in memory at a time."""
        return self.stage.batch // self.stage.accumulation

    def batches(self, indices: range, row_fn: Callable[[int], SourceRow]) -> Iterator[tuple[Batch, BatchInfo]]:
        """Yields the rows of `indices` once, in order. Raises Interrupted if `should_stop()`."""
        share = dict(process_index=jax.process_index(), process_count=jax.process_count())
        for pair in evaluation_batches(indices, row_fn, self.rows, threads=2, **share):
            if self.should_stop():
                raise Interrupted
            yield pair


def held_out_loss(eval_step, evaluator: Evaluator, held_out: Rows) -> dict[str, float]:
    """{"val/loss": .., "val/loss_blank": ..}: mean over the target tokens of the first `eval.samples` held-out rows.

    With `eval.shuffled` also "val/loss_shuffled": each text with the images of a row half the set away. Texts without
    images, or without different images to swap in, do not count. "val/replaced": the number of unreadable rows, where
    there are any. Raises DataError where no row can be read, Interrupted if `evaluator.should_stop()`.
    """
    stage, row = evaluator.stage, held_out.row
    rows = range(min(stage.eval.samples, len(held_out)))
    sums: dict[str, np.ndarray] = {}
    replaced = 0

    def add(name: str, batch: Batch) -> None:
        loss, targets = eval_step(evaluator.params, global_batch(batch, evaluator.mesh))
        sums[name] = sums.get(name, 0) + np.array((float(loss), float(targets)))

    def row_of_another(index: int) -> SourceRow:
        own, records = row(index)
        placeholders = (own.tokens == IMAGE_TOKEN_ID).sum()
        for step in range(MAX_TRIES if placeholders else 0):
            # Not the next row: rows with the same image are often neighbors.
            other = row((index + len(rows) // 2 + step) % len(rows)).arrays
            same_number = (other.tokens == IMAGE_TOKEN_ID).sum() == placeholders
            if same_number and not np.array_equal(other.images, own.images):
                return SourceRow(own._replace(images=other.images), records)
        return SourceRow(own._replace(target_mask=np.zeros_like(own.target_mask)), records)

    for batch, info in evaluator.batches(rows, row):
        replaced += len(info.replaced)
        add("val/loss", batch)
        if stage.data.max_images:
            add("val/loss_blank", blanked(batch))
    if stage.eval.shuffled:
        for batch, _ in evaluator.batches(rows, row_of_another):
            add("val/loss_shuffled", batch)
    if not sums["val/loss"][1]:
        raise DataError(f"none of {len(rows)} held-out samples can be read; {row(0).replaced[0]['reason']}")
    result = {name: loss / targets for name, (loss, targets) in sums.items() if targets}
    if everywhere := np.sum(multihost_utils.process_allgather(np.array(replaced))):
        result["val/replaced"] = float(everywhere)
    return result


def blanked(batch: Batch) -> Batch:
    return batch._replace(images=np.broadcast_to(BLANK, batch.images.shape))


def answer(evaluator: Evaluator, examples: list[Example], blank: bool) -> list[str]:
    """The greedy answer to the first question of each example, on every process; "" where the question leaves no room
    within the model's positions. All batches have one shape. Raises Interrupted if `evaluator.should_stop()`."""
    config, stage, tokenizer = evaluator.model.config, evaluator.stage, evaluator.tokenizer
    encode = partial(encode_prompt, tokenizer=tokenizer, template=stage.data.template, features=config.features)
    encoded = []
    for number, e in enumerate(examples):
        ids = encode(e.opening, len(e.images))
        if len(ids) < config.llm.max_positions:
            encoded.append((number, ids))
    longest = max((len(ids) for _, ids in encoded), default=1)
    shape = BatchShape(evaluator.rows, bucket(longest), stage.data.max_images)
    settings = GenerationConfig.of_template(tokenizer, stage.data.template, max_new_tokens=stage.eval.max_new_tokens)
    view, texts = decode_view(nested(evaluator.params)), [""] * len(examples)
    for start in range(0, len(encoded), shape.rows):
        if evaluator.should_stop():
            raise Interrupted
        batch = encoded[start : start + shape.rows]
        prompts = [Prompt(ids, _pixels(examples[number], evaluator, blank)) for number, ids in batch]
        answers = generate(evaluator.model, view, prompts, settings, tokenizer, evaluator.mesh, shape)
        for (number, _), answer in zip(batch, answers, strict=True):
            texts[number] = answer.text.strip()
    return texts


def _pixels(example: Example, evaluator: Evaluator, blank: bool) -> list[np.ndarray]:
    """The images of an example, uint8[H, W, 3] each."""
    size, aspect, exif = evaluator.model.config.image_size, evaluator.stage.data.aspect, evaluator.stage.data.exif
    if blank:
        return [np.broadcast_to(BLANK, (size, size, 3))] * len(example.images)
    return [preprocess(load_image(image, example.id, exif), size, aspect) for image in example.images]
