"""One run of `datagen instruct`: which image gets which kind of row, the requests, and the folder of the run.

The folder holds everything that the result depends on; rows are a pure function of these three files:

    settings.json    what was asked for; the same settings resume, others are refused
    contexts.jsonl   the images with their captions and boxes
    ledger.jsonl     every request before it is sent, every reply before it is parsed (llm_client/cache.py)
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.datagen.context_files import image_key, read_contexts
from llava_jax.datagen.contexts import ImageContext, context_record
from llava_jax.datagen.prompts import KINDS, WITH_BOXES
from llava_jax.errors import ConfigError
from llava_jax.output.files import read_object, write_whole

SETTINGS, CONTEXTS, LEDGER = "settings.json", "contexts.jsonl", "ledger.jsonl"
# Settings that decide the rows but not the requests, or only what they cost: they may change when a run is resumed.
MAY_CHANGE = ("rows", "server", "prices")


@dataclasses.dataclass(frozen=True)
class RowRequest:
    """A row to be made: one request to the teacher."""

    context: ImageContext
    kind: str

    @property
    def id(self) -> str:
        return f"{self.context.id}/{self.kind}"


def without_excluded(contexts: Sequence[ImageContext], excluded: set[str]) -> list[ImageContext]:
    """The contexts whose image is not excluded by its file name or id (see `image_key`)."""
    return [c for c in contexts if not {image_key(c.image), image_key(c.id)} & excluded]


def plan_requests(
    contexts: Sequence[ImageContext], sizes: Mapping[str, int | float], seed: int
) -> tuple[list[RowRequest], dict[str, int]]:
    """The requests in the order of the contexts, and the number of images that each kind was drawn from.

    sizes: for each kind a number of images (int), or a share from 0.0 to 1.0 (float) of those that it can be made
    from: all for conversation, those with known boxes for detail and reasoning. The kinds are drawn independently.
    Only seed, kind and id decide which images are drawn: of two sizes, the larger contains the smaller.

    Raises ConfigError for a share out of range and for more images than there are.
    """
    drawn, candidates = {}, {}
    for kind in KINDS:
        possible = [c.id for c in contexts if kind not in WITH_BOXES or c.boxes is not None]
        candidates[kind], size = len(possible), sizes[kind]
        if isinstance(size, float):
            if not 0 <= size <= 1:
                raise ConfigError(f"--{kind}-rows {size}: a share is from 0.0 to 1.0; a number of images has no point")
            size = round(size * len(possible))
        if not 0 <= size <= len(possible):
            note = " with known boxes" if kind in WITH_BOXES else ""
            raise ConfigError(f"--{kind}-rows {size}: there are {len(possible):,} images{note}")
        order = sorted(possible, key=lambda row_id: hashlib.sha256(f"{seed}/{kind}/{row_id}".encode()).digest())
        drawn[kind] = set(order[:size])
    return [RowRequest(c, kind) for c in contexts for kind in KINDS if c.id in drawn[kind]], candidates


def contexts_text(requests: Sequence[RowRequest]) -> str:
    """The content of contexts.jsonl: the contexts of these requests, each once."""
    contexts = {request.context.id: request.context for request in requests}
    return "".join(json.dumps(context_record(context)) + "\n" for context in contexts.values())


def open_folder(out: Path, settings: dict, contexts: str) -> bool:
    """Makes the folder of a run, or checks that it belongs to a run with the same settings. Returns whether it is new.

    Raises ConfigError for another folder or file and for other settings.
    """
    file = out / SETTINGS
    if file.is_file():
        previous = read_object(file, "the settings of the run")
        for name in sorted((settings.keys() | previous.keys()) - set(MAY_CHANGE)):
            if settings.get(name) != previous.get(name):
                raise ConfigError(
                    f"{out} belongs to a run with another {name}: {_short(previous.get(name))} there, "
                    f"{_short(settings.get(name))} now. Pass the same settings, or choose another folder."
                )
        is_new = False
    else:
        leftovers = {CONTEXTS, LEDGER}  # of a run that was killed while it made the folder
        if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - leftovers):
            raise ConfigError(f"{out} exists and is no folder of `datagen instruct`. Choose another one.")
        write_whole(out / CONTEXTS, contexts)
        is_new = True
    write_whole(file, json.dumps(settings, indent=1) + "\n")
    return is_new


def read_folder(out: Path) -> tuple[dict, list[ImageContext]]:
    """(settings, contexts) of a run. Raises DataError for a folder of another kind."""
    settings = read_object(out / SETTINGS, "the settings of a run of `datagen instruct`")
    return settings, read_contexts(out / CONTEXTS)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
