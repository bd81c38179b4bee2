"""Asks a model the problems of ScienceQA, as the original's `model_vqa_science` does.

one step    what the model answers to the problem
two steps   the original's answer prompter, for models trained on LEPA: the model reasons up to "###", then it goes on
            behind its reasoning and " ###\\nANSWER:"
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llava_jax.api.model import Loaded
from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.errors import DataError, TooLong
from llava_jax.images.files import ImageFolder, ImageZip
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.engine import Prompt
from llava_jax.text.encode import encode_segments
from llava_jax.text.templates import IMAGE_MARKER, Segment, render

SINGLE = "\nAnswer with the option's letter from the given choices directly."
REASONING_ENDS, ANSWER_CUE, ANSWER_TOKENS = "###", " ###\nANSWER:", 64
SAID = 3  # ids in a message


@dataclasses.dataclass(frozen=True)
class Asked:
    """A problem as it is put to the model. `number`: its place in the split. `prompt`: what is asked, with `<image>`
    where the image goes; `image` is its path below the image folder, None where it is asked without."""

    number: int
    pid: str
    prompt: str
    image: str | None


@dataclasses.dataclass(frozen=True)
class Manner:
    """How answers are made. temperature: 0 is greedy."""

    two_steps: bool = False
    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0


def ask(
    source: ScienceQA,
    limit: int = 0,
    image_place: str = "front",
    single: bool = False,
    missing: str = "error",
    without_images: bool = False,
) -> tuple[list[Asked], list[str]]:
    """(the first `limit` problems of a split, 0 for all, each once; the ids of those whose image is not on disk).

    image_place: "front" or "back" of the text, on a line of its own. single: with v1.5's sentence that asks for a
    letter alone. missing: "error"; "skip": a problem whose image is missing is not asked; "text": it is asked without.
    without_images: all are, and no image is missed.

    Raises DataError as `ScienceQA`, and for images that are missing under "error".
    """
    asked, missed = {}, []
    for number in range(min(len(source), limit or len(source))):
        row, where = source.raw(number)
        text = row["conversations"][0]["value"].replace(IMAGE_MARKER, "").strip() + (SINGLE if single else "")
        image = None if without_images else row.get("image")
        if image and _find(source.images, image, where) is None:
            missed.append(row["id"])
            image = None
            if missing == "skip":
                continue
        if image:
            text = f"{IMAGE_MARKER}\n{text}" if image_place == "front" else f"{text}\n{IMAGE_MARKER}"
        asked.setdefault(row["id"], Asked(number, row["id"], text, image))
    missed = list(dict.fromkeys(missed))
    if missed and missing == "error":
        raise DataError(
            f"{source.path}: the images of {len(missed):,} problems are missing (of {', '.join(missed[:SAID])}"
            f"{' ...' if len(missed) > SAID else ''}). Bring them, or choose --missing-images text (asked without) or "
            "skip (not asked)."
        )
    return list(asked.values()), missed


def tokens(model: Loaded, asked: Asked, two_steps: bool, reasoning: str | None = None) -> np.ndarray:
    """The ids of a prompt int32[L], images expanded; with `reasoning` those of the second step."""
    segments = render(model.template, [("human", asked.prompt)], open_answer=True, images_stay=True)
    last = segments[-1]
    if two_steps and model.template == "llava_v0":  # whose models wrote ` Assistant:` themselves
        last = last._replace(text=last.text.removesuffix("Assistant:"))
    segments[-1] = last
    if reasoning is not None:
        more = reasoning.rstrip() + ANSWER_CUE
        if last.kind == "text":  # one text, as the original tokenised it
            segments[-1] = last._replace(text=last.text + more)
        else:
            segments.append(Segment(more))
    ids, _ = encode_segments(model.tokenizer, model.template, segments, int(asked.image is not None))
    return model.place_images(ids)


def longest_first(model: Loaded, asked: Sequence[Asked], two_steps: bool) -> list[tuple[Asked, np.ndarray]]:
    """The problems in the order in which they are answered, with their prompts' ids: those of a batch are of similar
    length, so that few programs are compiled and little is padded, and what does not fit in memory shows at once.

    Raises TooLong for prompts that leave the model no room, DataError for text that the tokenizer does not take.
    """
    rows = []
    for one in asked:
        try:
            rows.append((one, tokens(model, one, two_steps)))
        except DataError as fault:  # half a character, say
            raise DataError(f"problem {one.pid}: {fault}", fault.kind) from None
    rows.sort(key=lambda row: -len(row[1]))  # equals stay in the order of the split
    longest = model.config.llm.max_positions
    if too_long := [one.pid for one, ids in rows if len(ids) >= longest]:
        raise TooLong(
            f"{len(too_long):,} prompts leave the model no room: it takes {longest:,} tokens, that of problem "
            f"{too_long[0]} has {len(rows[0][1]):,}. Choose a prompt format that tells less."
        )
    return rows


def predict(
    model: Loaded, rows: Sequence[tuple[Asked, np.ndarray]], images: ImageFolder | ImageZip, manner: Manner,
    batch: int, done: int = 0,
) -> Iterator[list[tuple[Asked, str]]]:  # fmt: skip
    """The answers to `rows`, batch by batch, but for the first `done`.

    Where `done` is within a batch, all of that batch is computed again, so that each answer comes from the same
    arithmetic whenever it is computed. Raises DataError for an image that does not open.
    """
    settings = model.settings(
        *([REASONING_ENDS] if manner.two_steps else []), max_new_tokens=manner.max_new_tokens,
        temperature=manner.temperature, seed=manner.seed,
    )  # fmt: skip
    for start in range(done // batch * batch, len(rows) if done < len(rows) else 0, batch):
        part = rows[start : start + batch]
        prompts = [Prompt(ids, _pixels(model, one, images), row=one.number) for one, ids in part]
        answers = model.answers(prompts, settings)
        if manner.two_steps:
            texts = _second_step(model, part, prompts, answers, settings)
        else:
            texts = [answer.text.strip() for answer in answers]
        yield [(one, text) for i, ((one, _), text) in enumerate(zip(part, texts, strict=True)) if start + i >= done]


def _second_step(model: Loaded, part, prompts: Sequence[Prompt], answers, settings) -> list[str]:
    """Reasoning and answer. The answer is empty where the reasoning left no room for it."""
    settings = dataclasses.replace(settings, max_new_tokens=ANSWER_TOKENS)
    second = [
        prompt._replace(tokens=tokens(model, one, True, answer.text))
        for (one, _), prompt, answer in zip(part, prompts, answers, strict=True)
    ]
    fits = [i for i, prompt in enumerate(second) if len(prompt.tokens) < model.config.llm.max_positions]
    said = dict(zip(fits, model.answers([second[i] for i in fits], settings), strict=True))
    return [
        f"{answer.text.strip()}\n The answer is {said[i].text.strip() if i in said else ''}"
        for i, answer in enumerate(answers)
    ]


def fingerprint(params: dict[str, jax.Array]) -> str:
    """Of weights: 16 hex digits that hardly any other weights share, the same on any mesh. (Of each parameter, the sum
    of its bits as integers modulo 2**32, which no order of adding changes; of these sums the SHA-256.)"""
    sums = {path: int(value) for path, value in _sums(params).items()}
    return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:16]


def digest(rows: Sequence[tuple[Asked, np.ndarray]]) -> str:
    """Of all that is asked, in its order."""
    found = hashlib.sha256()
    for one, ids in rows:
        found.update(repr((one.pid, one.image)).encode() + ids.astype("<i4").tobytes())
    return found.hexdigest()[:16]


@jax.jit
def _sums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    bits = {path: jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]) for path, x in params.items()}
    return {path: x.astype(jnp.uint32).sum(dtype=jnp.uint32) for path, x in bits.items()}


def _pixels(model: Loaded, asked: Asked, images: ImageFolder | ImageZip) -> list[np.ndarray]:
    if asked.image is None:
        return []
    where = f"problem {asked.pid}"
    image = load_image(images.find(asked.image, where), f"{where}: image {asked.image}")
    return [preprocess(image, model.config.image_size, model.aspect)]


def _find(images: ImageFolder | ImageZip, name: str, where: str):
    """A file or its bytes; None where there is none of this name."""
    try:
        found = images.find(name, where)
    except DataError as fault:
        if fault.kind != "missing":
            raise
        return None
    return found if isinstance(found, bytes) or found.is_file() else None
