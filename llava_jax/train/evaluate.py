"""Held-out loss, sample answers, and accuracy by kind of question, each with the image and with the image blanked.

A blanked image is CLIP's mean colour everywhere: what a model still knows then, it knows from the text alone.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.config.schema import Stage
from llava_jax.data.example import Example
from llava_jax.data.inspection.answers_page import format_answers as format_answers
from llava_jax.data.rows import Row
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.decode import decode_view, greedy
from llava_jax.models.llava import Llava
from llava_jax.models.params import Params, nested
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.encode import expand_images, pad_row, stop_ids, tokenize_prompt
from llava_jax.text.templates import stop_string
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.train.dataset import StageData, in_order, round_up
from llava_jax.train.sample_answers import save_answers as save_answers

TRIES = 8  # rows that are looked at for one with other images
BLANK = np.array((122, 116, 104), np.uint8)  # zero after CLIP's normalisation; also LLaVA's padding colour


class Interrupted(Exception):
    """The run was asked to stop in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model with its weights and everything it takes to ask it something. `stop` is asked before every batch."""

    model: Llava
    params: Params
    stage: Stage
    tokenizer: Tokenizer
    mesh: Mesh
    stop: Callable[[], bool]

    def batches(self, rows, to_row):
        """`rows` once, in order. Raises Interrupted when `stop` says so."""
        for batch in in_order(rows, to_row, self.stage.batch // self.stage.accumulation):
            if self.stop():
                raise Interrupted
            yield batch


def held_out_loss(eval_step, speaker: Speaker, data: StageData) -> dict[str, float]:
    """{"val/loss": .., "val/loss_blank": ..}: mean over target tokens of the first `eval.samples` held-out rows.

    Also "val/loss_shuffled" where `eval.shuffled` asks for it: each text with the images of a row half the set away,
    which are as likely as its own, but another's; texts without images, or for which there are no others, do not count.
    And "val/replaced", how many rows could not be read, where there are any. Raises DataError where none can.
    """
    stage, row = speaker.stage, data.held_out.row
    rows = range(min(stage.eval.samples, len(data.held_out)))
    sums: dict[str, np.ndarray] = {}
    replaced = 0

    def add(name: str, batch: Row) -> None:
        loss, targets = eval_step(speaker.params, global_batch(batch, speaker.mesh))
        sums[name] = sums.get(name, 0) + np.array((float(loss), float(targets)))

    def row_of_another(index: int) -> Row:
        own = row(index)
        placeholders = (own["tokens"] == IMAGE_TOKEN_ID).sum()
        for step in range(TRIES if placeholders else 0):
            # Not the next one: rows that share a picture tend to be neighbours.
            other = row((index + len(rows) // 2 + step) % len(rows))
            same_number = (other["tokens"] == IMAGE_TOKEN_ID).sum() == placeholders
            if same_number and not np.array_equal(other["images"], own["images"]):
                return own | {"images": other["images"]}
        return own | {"target_mask": np.zeros_like(own["target_mask"])}

    for batch in speaker.batches(rows, row):
        replaced += batch.get("replaced", np.zeros(1)).sum()
        add("val/loss", batch)
        if stage.data.max_images:
            add("val/loss_blank", blanked(batch))
    if stage.eval.shuffled:
        for batch in speaker.batches(rows, row_of_another):
            add("val/loss_shuffled", batch)
    if not sums["val/loss"][1]:
        raise DataError(f"not one of {len(rows)} held-out samples can be read; {row(0)['replaced'][0]['reason']}")
    result = {name: loss / targets for name, (loss, targets) in sums.items() if targets}
    if everywhere := np.sum(multihost_utils.process_allgather(np.array(replaced))):
        result["val/replaced"] = float(everywhere)
    return result


def blanked(batch: Row) -> Row:
    return {**batch, "images": np.broadcast_to(BLANK, batch["images"].shape)}


def answer(speaker: Speaker, examples: list[Example], blank: bool) -> list[str]:
    """The model's greedy answer to the first question of each example, without the stop string."""
    model, stage, tokenizer = speaker.model, speaker.stage, speaker.tokenizer
    vision, template = model.config.vision, stage.data.template
    prompts = []  # by their number: one picture's rows share an id
    for e in examples:
        ids = tokenize_prompt(tokenizer, template, e.turns[:1], len(e.images))
        prompts.append(expand_images(ids, np.zeros(len(ids), bool), vision.features))
    length = round_up(max(len(ids) for ids, _ in prompts), 16)  # few lengths, few compilations

    def to_row(number: int) -> Row:
        e = examples[number]
        row = pad_row(*prompts[number], length, tokenizer.pad_id)
        pixels = [preprocess(load_image(i, e.id), vision.image_size, stage.data.aspect) for i in e.images]
        row["images"] = np.zeros((stage.data.max_images, vision.image_size, vision.image_size, 3), np.uint8)
        row["images"][: len(pixels)] = np.array(pixels) if pixels else 0
        return row

    stop = stop_ids(tokenizer, template)
    # A stop of several tokens can only be found in the text; </s> still ends a row early.
    stops = jnp.array(stop if len(stop) == 1 else (tokenizer.eos_id,), jnp.int32)
    view, answers = decode_view(nested(speaker.params)), []
    for batch in speaker.batches(range(len(examples)), to_row):
        batch = blanked(batch) if blank else batch
        ids = greedy(model, view, global_batch(batch, speaker.mesh), stops, stage.eval.max_new_tokens)
        answers += list(np.asarray(multihost_utils.process_allgather(ids, tiled=True)))
    return [_cut(row, stop, tokenizer, template) for row in answers[: len(examples)]]


def _cut(ids: np.ndarray, stop: tuple[int, ...], tokenizer: Tokenizer, template: str) -> str:
    ends = np.flatnonzero(np.isin(ids, (*stop[:1], tokenizer.eos_id) if len(stop) == 1 else (tokenizer.eos_id,)))
    text = tokenizer.decode(ids[: ends[0]] if len(ends) else ids)
    return text.split(stop_string(template))[0].strip()
