"""Asks a model all questions of a task and writes its answers file; resumable after a kill at any point.

A task with several generations per answer passes its own `encode` and `generate`; see scienceqa/two_steps.py.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llava_jax.api.model import LlavaModel
from llava_jax.errors import ConfigError, DataError, TooLong
from llava_jax.evaluation.answers_file import AnswersFile, open_answers_file
from llava_jax.evaluation.fingerprint import prompts_fingerprint, weights_fingerprint
from llava_jax.evaluation.questions import PredictOptions, TaskQuestion, build_questions
from llava_jax.evaluation.task import ImageStore, Task
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.engine import GenerationConfig, Prompt
from llava_jax.output.console import log, progress
from llava_jax.text.encode import encode_segments
from llava_jax.text.templates import Segment, render

EncodedQuestion = tuple[TaskQuestion, np.ndarray]  # a question and the ids int32[L] of its prompt, images expanded
Encode = Callable[[LlavaModel, TaskQuestion], np.ndarray]
Generate = Callable[[LlavaModel, Sequence[TaskQuestion], Sequence[Prompt], GenerationConfig], list[str]]


def encode_question(model: LlavaModel, question: TaskQuestion) -> np.ndarray:
    """The ids int32[L] of a question's prompt, images expanded. Raises DataError as `encode_rendered` does."""
    return encode_rendered(model, question, render_question(model, question))


def render_question(model: LlavaModel, question: TaskQuestion) -> list[Segment]:
    """The question as one turn of the model's template, up to the assistant cue. `<image>` keeps its place."""
    return render(model.template, [("human", question.prompt)], open_answer=True, images_stay=True)


def encode_rendered(model: LlavaModel, question: TaskQuestion, segments: Sequence[Segment]) -> np.ndarray:
    """The ids int32[L] of rendered segments, images expanded. Raises DataError for text that is not valid Unicode."""
    ids, _ = encode_segments(model.tokenizer, model.template, segments, int(question.image is not None))
    return model.expand_image_tokens(ids)


def generate_answers(
    model: LlavaModel, questions: Sequence[TaskQuestion], prompts: Sequence[Prompt], settings: GenerationConfig
) -> list[str]:
    """The model's answers to a batch of prompts, one for each of `questions`."""
    return [answer.text.strip() for answer in model.answers(prompts, settings)]


def predict_answers(
    task: Task,
    out: Path,
    load_model: Callable[[], LlavaModel],
    settings: Mapping[str, Any],
    options: PredictOptions,
    generation: Mapping[str, Any],
    *,
    encode: Encode = encode_question,
    generate: Generate = generate_answers,
) -> None:
    """Writes or resumes the answers file `out` of a task, longest prompt first.

    OUT.settings.json beside OUT records what decides the answers: `settings`, the template, the image aspect, and
    fingerprints of weights and prompts.

    Args:
        load_model: called only after the settings of an existing file match, because it is slow.
        settings: JSON values by name: "model_id" and every option that changes an answer.
        generation: keyword arguments of `LlavaModel.settings`.
        encode: maps a question to the ids int32[L] of its prompt.
        generate: maps a batch of prompts to the texts of the answers.

    Raises ConfigError if `out` has other settings, weights or prompts, and for images without a vision tower; DataError
    as `build_questions` does and for an unreadable image; KeyboardInterrupt, after a log line.
    """
    if jax.process_count() > 1:
        raise ConfigError(f"predict runs in one process, on all its devices; this is one of {jax.process_count()}")
    questions, missing = build_questions(task, options)
    with open_answers_file(out) as answers:
        answers.check(settings)
        model = load_model()
        if not model.config.vision and any(question.image for question in questions):
            raise ConfigError(f"{settings['model_id']} is a language model alone; pass --without-images")
        rows = longest_first(model, questions, encode)
        settings = {**settings, "template": model.template, "aspect": model.aspect}
        settings |= {"weights": weights_fingerprint(model.params), "prompts": prompts_fingerprint(rows)}
        answers.begin(settings, [question.pid for question, _ in rows])
        log(_summary(questions, missing, options.missing_images, answers.count))
        done, start = answers.count, time.monotonic()
        batches = answer_batches(model, rows, task.images, model.settings(**generation), options.batch, done, generate)
        try:
            _write(answers, batches, settings, len(rows))
        except KeyboardInterrupt:
            log(f"stopped after {answers.count:,} of {len(rows):,}; run the same command again to resume {out}")
            raise
    seconds = time.monotonic() - start
    log(f"{out}: {answers.count:,} answers, {answers.count - done:,} of them new ({seconds:.0f} s)")


def longest_first(
    model: LlavaModel, questions: Sequence[TaskQuestion], encode: Encode = encode_question
) -> list[EncodedQuestion]:
    """The questions with their ids, longest first, so that batches need little padding and few compiled programs, and a
    batch that does not fit in memory fails at once.

    Raises TooLong for prompts without room for an answer, DataError for text that cannot be encoded.
    """
    rows = []
    for question in questions:
        try:
            rows.append((question, encode(model, question)))
        except DataError as fault:  # e.g. a lone surrogate
            raise DataError(f"problem {question.pid}: {fault}", fault.kind) from None
    rows.sort(key=lambda row: -len(row[1]))  # equal lengths stay in the order of the split
    longest = model.config.llm.max_positions
    if too_long := [question.pid for question, ids in rows if len(ids) >= longest]:
        raise TooLong(
            f"{len(too_long):,} prompts leave no room for an answer: the model takes {longest:,} tokens, but that of "
            f"problem {too_long[0]} has {len(rows[0][1]):,}. Choose a shorter prompt format."
        )
    return rows


def answer_batches(
    model: LlavaModel, rows: Sequence[EncodedQuestion], images: ImageStore, settings: GenerationConfig,
    batch: int, done: int = 0, generate: Generate = generate_answers,
) -> Iterator[list[tuple[TaskQuestion, str]]]:  # fmt: skip
    """Yields the answers to `rows` batch by batch, without the first `done`.

    If `done` lies within a batch, the whole batch is recomputed, so that resuming does not change the arithmetic of an
    answer. Raises DataError for an unreadable image.
    """
    for start in range(done // batch * batch, len(rows) if done < len(rows) else 0, batch):
        batch_rows = rows[start : start + batch]
        questions = [question for question, _ in batch_rows]
        prompts = [Prompt(ids, _pixels(model, question, images), row=question.number) for question, ids in batch_rows]
        texts = generate(model, questions, prompts, settings)
        yield list(zip(questions, texts, strict=True))[max(0, done - start) :]


def _pixels(model: LlavaModel, question: TaskQuestion, images: ImageStore) -> list[np.ndarray]:
    if question.image is None:
        return []
    where = f"problem {question.pid}"
    image = load_image(images.find(question.image, where), f"{where}: image {question.image}")
    return [preprocess(image, model.config.image_size, model.aspect)]


def _write(answers: AnswersFile, batches: Iterator[list[tuple[TaskQuestion, str]]], settings: dict, total: int) -> None:
    with progress("answered", total=total, initial=answers.count) as report_progress:
        for batch in batches:
            answers.write([_record(question, text, settings) for question, text in batch])
            report_progress(answers.count)


def _record(question: TaskQuestion, text: str, settings: dict) -> dict:
    """A line of the answers file, as LLaVA's inference scripts write it."""
    identity = f"{sorted(settings.items())} {question.pid}"
    return {
        "question_id": question.pid,
        "prompt": question.prompt,
        "text": text,
        "answer_id": hashlib.sha256(identity.encode()).hexdigest()[:22],
        "model_id": settings["model_id"],
        "metadata": {},
    }


def _summary(questions: Sequence[TaskQuestion], missing: Sequence[str], policy: str, done: int) -> str:
    with_image = sum(question.image is not None for question in questions)
    text = f"{len(questions):,} problems, {with_image:,} with their image"
    if missing:
        treatment = "skipped" if policy == "skip" else "asked without"
        text += f"; the images of {len(missing):,} are missing, these are {treatment}; the first: {missing[0]}"
    return text + (f"; {done:,} already answered" if done else "")
