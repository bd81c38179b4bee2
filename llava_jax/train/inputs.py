"""From a stage's config to its data: the source, how an example becomes a row, and the batches of this process."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from llava_jax.architectures import VisionConfig
from llava_jax.checkpoint.gguf import GgufFile, is_gguf
from llava_jax.checkpoint.gguf_tokenizer import read_tokenizer
from llava_jax.config import Data, Stage
from llava_jax.data.conversation import find_template
from llava_jax.data.example import Example
from llava_jax.data.mixture import Mixture, Part
from llava_jax.data.open_source import open_source
from llava_jax.data.pipeline import Batches, Row, build_row, evaluation_batches, make_batches, steps_per_run
from llava_jax.data.scene_source import SceneSource, exam
from llava_jax.data.sources import Joined, Subset, held_out_split
from llava_jax.data.tokenizer import Tokenizer, load_tokenizer
from llava_jax.errors import ConfigError

TINY_TOKENIZER = Path(__file__).parent.parent / "pretrained" / "tokenizer"
HELD_OUT_MINIMUM = 64  # examples; a smaller held-out set says little


@dataclasses.dataclass(frozen=True)
class StageData:
    """`held_out` is None where nothing was kept out. `exam` holds questions with known kinds (scenes only)."""

    train: object
    held_out: object | None
    exam: list[Example]
    to_row: Callable[[Example], Row]
    steps: int


def open_tokenizer(name: str) -> Tokenizer:
    """`tiny` is the one that ships with the package, everything else a path: see `load_tokenizer`; or a GGUF file."""
    if is_gguf(Path(name)):
        return read_tokenizer(GgufFile(Path(name)))
    return load_tokenizer(TINY_TOKENIZER if name == "tiny" else name)


def open_stage(name: str, stage: Stage, seed: int, tokenizer: Tokenizer, vision: VisionConfig) -> StageData:
    """Opens the data of a stage and checks what can be checked before training.

    Raises DataError for missing or broken files, ConfigError for settings that do not fit together.
    """
    d = stage.data
    find_template(d.template)
    if d.max_images * vision.features >= d.length:
        raise ConfigError(
            f"stages.{name}.data.length={d.length} leaves no room for text beside {d.max_images} images of "
            f"{vision.features} patches; raise it or lower max_images"
        )
    to_row = partial(
        build_row, tokenizer=tokenizer, template=d.template, length=d.length, max_images=d.max_images,
        features=vision.features, image_size=vision.image_size, aspect=d.aspect, overlong=d.overlong,
    )  # fmt: skip
    if d.source == "scenes":
        train = SceneSource(d.scenes, seed, False, vision.image_size)
        held_out = SceneSource(d.scenes, seed, True, vision.image_size, length=stage.eval.samples)
        questions = exam(seed, vision.image_size, stage.eval.questions)
        return StageData(train, held_out, questions, to_row, stage.steps)
    if stage.eval.questions:
        raise ConfigError(f"stages.{name}.eval.questions needs data.source=scenes: only scenes know the true answers")
    if d.mixture:
        train, held_out, examples = _open_mixture(d, seed)
    else:
        train, held_out = _split(open_source(d.path, d.image_folder), d, HELD_OUT_MINIMUM)
        examples = len(train)
    return StageData(train, held_out, [], to_row, stage.steps or steps_per_run(examples, stage.batch, stage.epochs))


def _split(source, d: Data, minimum: int) -> tuple[object, object | None]:
    return held_out_split(source, d.held_out, minimum) if d.held_out > 0 else (source, None)


def _open_mixture(d: Data, seed: int) -> tuple[Mixture, object | None, int]:
    """(what is trained on, what is held out of each part, how many examples one epoch is: as many as all have)."""
    minimum = math.ceil(HELD_OUT_MINIMUM / len(d.mixture))
    opened = [(path, _split(open_source(path, root), d, minimum), weight) for path, root, weight in d.mixture]
    train = Mixture([Part(path, kept, weight) for path, (kept, _), weight in opened], seed)
    held_out = None
    if d.held_out > 0:
        joined = Joined([out for _, (_, out), _ in opened])
        # Evaluation takes the first so many: of every part.
        held_out = Subset(joined, np.argsort(np.random.Philox(0).random_raw(len(joined)), kind="stable"))
    return train, held_out, sum(len(kept) for _, (kept, _), _ in opened)


def training_batches(stage: Stage, data: StageData, seed: int) -> Batches:
    """The shuffled, endless batches of this process; the loop stops after `data.steps`."""
    mixed = isinstance(data.train, Mixture)  # it shuffles each of its sources itself, and never ends
    return make_batches(
        data.train, data.to_row, batch_size=stage.batch, seed=seed, shuffle=not mixed,
        epochs=None if stage.steps or mixed else stage.epochs, process_index=jax.process_index(),
        process_count=jax.process_count(), threads=stage.data.threads, prefetch=2,
    )  # fmt: skip


def in_order(rows, to_row, batch_size: int) -> Batches:
    """`rows` once, in order, for evaluation; the last batch is filled up with empty rows."""
    return evaluation_batches(
        rows, to_row, batch_size, process_index=jax.process_index(), process_count=jax.process_count(), threads=2
    )


def round_up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
