"""Folders of finished runs of `datagen instruct`, made of given replies: no server, the real checks and files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.datagen.assemble import RowOptions, row_records, vocabulary_of, write_rows
from llava_jax.datagen.avoidance import AbsentObjects
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.instruct import RowRequest, contexts_text, open_folder
from llava_jax.llm_client.cache import Reply

DOG, CAT = Box("dog", 0.1, 0.2, 0.4, 0.8), Box("cat", 0.6, 0.3, 0.9, 0.9)
PARK = ImageContext("1", "park.jpg", ("A dog and a cat play in a park.",), (DOG, CAT))
ROOM = ImageContext("2", "sub/room.jpg", ("Two cats sleep in a room.",), (CAT, Box("cat", 0.0, 0.0, 0.2, 0.2)))
PRICES = {"input": 2.0, "output": 10.0}


def conversation(*pairs: tuple[str, str]) -> str:
    """A reply in the grammar of conversations and reasoning."""
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)


def write_run(
    out: Path,
    requests: Sequence[tuple[ImageContext, str]],
    texts: Mapping[tuple[str, str], str],
    prices: Mapping[str, float | None] = PRICES,
    options: RowOptions = RowOptions(seed=0),  # noqa: B008
    opinions: Mapping[str, str] | None = None,
    is_batch: bool = False,
) -> Path:
    """Writes the folder of a run. texts: (context id, kind) -> reply, of 1,000 input and 100 output tokens; a missing
    one has no reply. Returns `out`."""
    planned = [RowRequest(context, kind) for context, kind in requests]
    settings = {"model": "teacher", "seed": 0, "prices": dict(prices)}
    open_folder(out, json.loads(json.dumps(settings)), contexts_text(planned))

    def reply(text: str) -> Reply:
        return Reply(text, "stop", not text.strip(), "teacher", 1000, 100, is_batch)

    replies = {f"{row_id}/{kind}": reply(text) for (row_id, kind), text in texts.items()}
    opinion_replies = {key: reply(text) for key, text in (opinions or {}).items()}
    contexts = list(dict.fromkeys(context for context, _ in requests))
    objects = AbsentObjects(contexts, vocabulary_of(contexts))
    records = row_records(planned, replies, opinion_replies, options, objects)
    write_rows(out, planned, records, options.seed)
    return out
