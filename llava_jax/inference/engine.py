"""Prompts in, answers out: a batch at a time, padded to a few fixed shapes. `slot_engine` answers one by one."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig
from llava_jax.errors import ConfigError, DataError, TooLong
from llava_jax.inference.decode import DecodeState, decode, decode_view, prefill
from llava_jax.inference.sampling import SamplingParams
from llava_jax.models.llava import Llava
from llava_jax.runtime.sharding import gather_to_host, split_batch
from llava_jax.text.detokenize import Detokenizer, StopStrings
from llava_jax.text.encode import stop_ids, stop_strings
from llava_jax.text.token_row import Batch, EncodedExample, stack_rows, token_row
from llava_jax.text.tokenizer import Tokenizer

STEPS_PER_ROUND = 16  # decoding steps between two searches for stop strings


class Prompt(NamedTuple):
    """One row of a batch."""

    tokens: Sequence[int] | np.ndarray  # each image is a run of `features` IMAGE_TOKEN_ID, as from expand_images
    images: Sequence[np.ndarray] | np.ndarray = ()  # [H, W, 3] each: uint8, or floating point and normalised
    row: int = 0  # equal rows and seeds give equal random numbers: number prompts to sample several answers


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How a batch is answered. New values compile nothing, except for another bucket of max_new_tokens."""

    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    max_new_tokens: int = 512  # limited also by the model's positions
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 for all
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def of_template(cls, tokenizer: Tokenizer, template: str, *stop: str, **options) -> "GenerationConfig":
        """For answers that end where `template` ends them, or at one of `stop`. options: the other fields."""
        return cls(stop_ids(tokenizer, template), (*stop, *stop_strings(template)), **options)

    def __post_init__(self):
        """Raises ConfigError for a value out of range."""
        in_range = {
            "stop_ids": all(id >= 0 for id in self.stop_ids),
            "stop_strings": all(self.stop_strings),
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "seed": 0 <= self.seed < 2**32,
        }
        for name, is_valid in in_range.items():
            if not is_valid:
                ranges = "max_new_tokens >= 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1, 0 <= seed < 2**32"
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range: {ranges}, no empty stop string")


class BatchShape(NamedTuple):
    """The shape to which a batch of prompts is padded. Batches of one shape share their compiled programs."""

    rows: int
    length: int  # T
    image_slots: int  # N, per row


@dataclasses.dataclass
class Generation:
    """The answer to one prompt, as far as it is generated."""

    ids: list[int] = dataclasses.field(default_factory=list)  # including the stop token
    text: str = ""  # without stop token and stop string; as `Tokenizer.decode` writes it, with a leading space
    finish: Literal["stop", "length"] | None = None


class GeneratedPiece(NamedTuple):
    """What one step adds to an answer. `text` may be empty, or include text of earlier ids."""

    id: int
    text: str
    finish: Literal["stop", "length"] | None


def generate(
    model: Llava,
    params: dict,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None = None,
    mesh: Mesh | None = None,
    shape: BatchShape | None = None,
) -> list[Generation]:
    """Answers all prompts as one batch; each answer equals that of its prompt alone. No tokenizer, no text.

    params: a decode_view (or the nested tree, from which each call makes one). mesh: the one that holds params; with
    several processes, each calls this with all prompts, computes its rows, and gets all answers. shape: what the batch
    is padded to, with rows that split evenly over the mesh; None: the `batch_shape` of the prompts.

    Raises DataError for a prompt that is empty or whose placeholders and images disagree, TooLong for one too long for
    the model, and ConfigError for stop strings without a tokenizer.
    """
    if not prompts:
        return []
    params, config = decode_view(params), model.config
    limits = [answer_limit(config, f"prompt {i}", prompt, settings.max_new_tokens) for i, prompt in enumerate(prompts)]
    writers = [PieceWriter(settings, tokenizer, limit) for limit in limits]
    answers = [Generation() for _ in prompts]
    shape = shape or batch_shape(prompts, config.dtype, mesh)
    steps = STEPS_PER_ROUND if settings.stop_strings else settings.max_new_tokens
    finished, count = np.zeros(shape.rows, bool), 0
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        state = _prefill(model, params, prompts, settings, limits, shape, mesh)
        while True:
            before, count, ids = count, int(state.count), gather_to_host(state.answer)
            for answer, writer, row in zip(answers, writers, ids[: len(answers), before:count].tolist(), strict=True):
                for piece in writer.pieces(row):
                    answer.ids.append(piece.id)
                    answer.text += piece.text
                    answer.finish = piece.finish
            finished[: len(answers)] = [answer.finish is not None for answer in answers]
            if finished[: len(answers)].all():
                return answers
            state = decode(model, params, state, np.int32(steps), finished)


class PieceWriter:
    """Makes the pieces of one answer from its ids. `finish` is set by the last one."""

    def __init__(self, settings: GenerationConfig, tokenizer: Tokenizer | None, limit: int):
        if settings.stop_strings and tokenizer is None:
            raise ConfigError("stop strings are searched in the text; pass the tokenizer too")
        self.stop_ids, self.left = settings.stop_ids, limit
        self.detokenizer = tokenizer and Detokenizer(tokenizer)
        self.stops = StopStrings(settings.stop_strings)
        self.finish = None

    def pieces(self, ids: list[int]) -> list[GeneratedPiece]:
        """Ids after the end of the answer are dropped."""
        return [self.piece(id) for id in ids if self.finish is None]

    def piece(self, id: int) -> GeneratedPiece:
        """The next one. Call it while `finish` is None."""
        self.left -= 1
        is_stop = id in self.stop_ids
        text = "" if is_stop or not self.detokenizer else self.stops.push(self.detokenizer.push(id))
        if (is_stop or self.left == 0) and not self.stops.is_stopped:
            text += self.stops.push(self.detokenizer.flush()) if self.detokenizer else ""
            text += self.stops.flush()
        if is_stop or self.stops.is_stopped:
            self.finish = "stop"
        elif self.left == 0:
            self.finish = "length"
        return GeneratedPiece(id, text, self.finish)


def bucket(n: int) -> int:
    """The next length that programs are compiled for: multiples of 16, from 128 on four lengths per doubling.

    bucket(1) == 16, bucket(100) == 112, bucket(130) == 160, bucket(1100) == 1280
    """
    step = max(16, 1 << (n - 1).bit_length() >> 3)
    return -(-n // step) * step


def batch_shape(prompts: Sequence[Prompt], dtype: str, mesh: Mesh | None) -> BatchShape:
    """The next of a few shapes that holds the prompts: `padded_rows`, the `bucket` of the longest prompt, and image
    slots rounded up to a power of two."""
    most_images = max(len(prompt.images) for prompt in prompts)
    return BatchShape(
        padded_rows(len(prompts), dtype, mesh),
        bucket(max(len(prompt.tokens) for prompt in prompts)),
        most_images and 1 << (most_images - 1).bit_length(),
    )


def padded_rows(count: int, dtype: str, mesh: Mesh | None) -> int:
    """The rows to which a batch of `count` is padded: a power of two, rounded up to what splits evenly over the mesh.

    In bfloat16 at least two: a matmul with a single row does not use the matrix units.
    """
    rows = max(1 << (count - 1).bit_length(), 2 if dtype == "bfloat16" else 1)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    return -(-rows // parts) * parts


def answer_limit(
    config: ModelConfig, name: str, prompt: Prompt, max_new_tokens: int, max_length: int | None = None
) -> int:
    """The most tokens that the answer may have. max_length: of prompt and answer, if less than the model's positions.
    Raises DataError or TooLong, which begin with `name`, for an invalid prompt."""
    tokens, images = np.asarray(prompt.tokens), len(prompt.images)
    length, context = len(tokens), min(max_length or config.llm.max_positions, config.llm.max_positions)
    if not 0 < length < context:
        error = TooLong if length else DataError
        raise error(f"{name} has {length} tokens; the model takes 1 to {context - 1}, so shorten the conversation")
    if images and not config.vision:
        raise DataError(f"{name} has {images} image(s); this is a language model alone, it takes none")
    placeholders = int((tokens == IMAGE_TOKEN_ID).sum())
    if placeholders != images * config.features:
        raise DataError(
            f"{name} has {images} image(s) of {config.features} features, but {placeholders} placeholder tokens; "
            "write one run of placeholder tokens per image"
        )
    text = tokens[tokens != IMAGE_TOKEN_ID]
    if text.size and not 0 <= text.min() <= text.max() < config.llm.vocab_size:
        raise DataError(
            f"{name} has token ids from {text.min()} to {text.max()}, but the model's vocabulary ends at "
            f"{config.llm.vocab_size - 1}; use the tokenizer that belongs to the weights"
        )
    return min(max_new_tokens, context - length)


def _prefill(model, params, prompts, settings, limits, shape, mesh) -> DecodeState:
    """Makes all inputs of the device in numpy, with shapes that depend only on buckets, and runs the prefill."""
    batch = prompt_batch(prompts, shape, model.config.image_size)
    full = lambda value, dtype: np.full(shape.rows, value, dtype)  # noqa: E731
    limit, row = full(0, np.int32), full(0, np.uint32)
    limit[: len(prompts)] = limits
    row[: len(prompts)] = [prompt.row for prompt in prompts]
    sampling = SamplingParams(
        temperature=full(settings.temperature, np.float32),
        top_k=full(settings.top_k, np.int32),
        top_p=full(settings.top_p, np.float32),
        seed=full(settings.seed, np.uint32),
        row=row,
    )
    width = -(-max(len(settings.stop_ids), 1) // 8) * 8
    stop_ids = np.full(width, -1, np.int32)  # no token has the id -1
    stop_ids[: len(settings.stop_ids)] = settings.stop_ids
    arrays = split_batch(batch, mesh) if mesh else batch
    return prefill(model, params, arrays, sampling, stop_ids, limit, bucket(settings.max_new_tokens))


def prompt_batch(prompts: Sequence[Prompt], shape: BatchShape, image_size: int) -> Batch:
    """A batch with the prompts as its first rows and padding as the others. Raises DataError for prompts that do not
    fit into `shape`, for images of another size than `image_size`, and for images of several dtypes."""
    images = [np.asarray(image) for prompt in prompts for image in prompt.images]
    dtype, size = images[0].dtype if images else np.dtype(np.uint8), [image_size, image_size, 3]
    for image in images:
        if [*image.shape] != size or image.dtype != dtype:
            raise DataError(f"an image is {image.dtype}{[*image.shape]}; the model takes {dtype}{size}")
    examples = [[EncodedExample(p.tokens, np.zeros(len(p.tokens), bool), p.images)] for p in prompts]
    filler = [[]] * (shape.rows - len(prompts))
    return stack_rows([
        token_row(e, length=shape.length, image_slots=shape.image_slots, image_size=image_size, image_dtype=dtype)
        for e in examples + filler
    ])  # fmt: skip
