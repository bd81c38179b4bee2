"""Makes checks.jsonl and instruct.json of a run from its replies. The same replies and settings give the same bytes."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llava_jax.datagen.avoidance import AbsentObjects, absent_pair
from llava_jax.datagen.categories import Vocabulary, coco_vocabulary, scene_vocabulary
from llava_jax.datagen.claims import claims_in
from llava_jax.datagen.contexts import ImageContext
from llava_jax.datagen.duplicates import duplicates
from llava_jax.datagen.instruct import RowRequest
from llava_jax.datagen.prompts import detail_question, instruction_row
from llava_jax.datagen.quality import FAULTS, text_faults
from llava_jax.datagen.replies import parse_reply
from llava_jax.datagen.second_opinion import parse_opinion
from llava_jax.datagen.truth import verdict
from llava_jax.errors import ConfigError
from llava_jax.llm_client.cache import Reply
from llava_jax.output.files import write_whole

CHECKS, ROWS = "checks.jsonl", "instruct.json"
NO_REPLY = "no reply"
DROPS = (*FAULTS, "duplicate", "false claim", "unsupported")


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What decides the rows, given the replies. Raises ConfigError for a share or a name of a check that is none.

    drop: names of checks, of DROPS; a row that fails one is not kept. avoidance: the share of conversations that get a
    question about an absent object.
    """

    seed: int
    drop: tuple[str, ...] = ()
    avoidance: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "drop", tuple(name.replace("-", " ") for name in self.drop))
        if unknown := [name for name in self.drop if name not in DROPS]:
            names = ", ".join(name.replace(" ", "-") for name in DROPS)
            raise ConfigError(f"--drop {unknown[0].replace(' ', '-')}: is no check; checks are {names}")
        if not 0 <= self.avoidance <= 1:
            raise ConfigError("--avoidance is a share of the conversations, from 0 to 1")


def parsed_pairs(request: RowRequest, reply: Reply | None, seed: int) -> tuple[list[tuple[str, str]], str | None]:
    """((question, answer) pairs, None), or ([], why there are none). A description gets its question."""
    if reply is None:
        return [], NO_REPLY
    if reply.is_refused:
        return [], "refused" if reply.text.strip() or reply.finish == "content_filter" else "empty reply"
    pairs, reason = parse_reply(request.kind, reply.text, reply.finish)
    if request.kind == "detail":
        pairs = [(detail_question(request.context, seed), answer) for _, answer in pairs]
    return pairs, reason


def vocabulary_of(contexts: Sequence[ImageContext]) -> Vocabulary:
    """The nouns in which claims about these images are checked: our scenes' if all boxes are theirs, else COCO's."""
    categories = {box.category for context in contexts for box in context.boxes or ()}
    scenes = scene_vocabulary()
    return scenes if categories and all(tuple(c.split()) in scenes.nouns for c in categories) else coco_vocabulary()


def row_records(
    requests: Sequence[RowRequest],
    replies: Mapping[str, Reply],
    opinions: Mapping[str, Reply],
    options: RowOptions,
    objects: AbsentObjects,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[dict]:
    """A record per request, in their order: the lines of checks.jsonl. replies, opinions: by id (see second_opinion).

    pairs: what the teacher wrote. absent: a pair about an absent object that the row gets before pair `position`.
    quality, duplicate_of: see `quality`, `duplicates`. claims: fields of `Claim`, the pair, and whether the boxes say
    it is right, None if they cannot decide. supported: the second model's opinion of each pair, None without it.
    """
    parsed = {r.id: parsed_pairs(r, replies.get(r.id), options.seed) for r in requests}
    repeated = duplicates([(r.id, _own_text(r, parsed[r.id][0])) for r in requests if parsed[r.id][0]])
    records = []
    for request in requests:
        reply, (pairs, reason) = replies.get(request.id), parsed[request.id]
        answers = [opinions.get(f"{request.id}/opinion/{i}") for i in range(len(pairs))]
        checks = {
            "quality": text_faults(request.context, request.kind, pairs) if pairs else [],
            "duplicate_of": repeated.get(request.id),
            "claims": _claims(request.context, pairs, objects.vocabulary),
            "supported": [None if answer is None else parse_opinion(answer.text) for answer in answers],
        }
        reason = reason or _dropped(checks, options.drop)
        record = {"id": request.context.id, "image": request.context.image, "kind": request.kind}
        record |= {"kept": reason is None, "reason": reason, "pairs": pairs, **_usage(reply)}
        record |= {"absent": _absent(request, objects, len(pairs), options) if pairs else None, **checks}
        if not pairs:
            record["reply"] = None if reply is None else reply.text
        records.append(record)
        on_progress(len(records))
    return records


def _claims(context: ImageContext, pairs: Sequence[tuple[str, str]], vocabulary: Vocabulary) -> list[dict]:
    return [
        {**dataclasses.asdict(claim), "pair": i, "right": verdict(claim, context.boxes, vocabulary)}
        for i, (question, answer) in enumerate(pairs)
        for claim in claims_in(question, answer, vocabulary)
    ]


def _own_text(request: RowRequest, pairs: Sequence[tuple[str, str]]) -> str:
    """What the teacher wrote: of a description not the question."""
    return "\n".join(answer if request.kind == "detail" else f"{question}\n{answer}" for question, answer in pairs)


def _usage(reply: Reply | None) -> dict:
    names = ("finish", "input_tokens", "output_tokens", "is_batch")
    return {name: None if reply is None else getattr(reply, name) for name in names}


def _dropped(checks: dict, drop: Sequence[str]) -> str | None:
    """The reason of the first check of `drop` that a row fails."""
    failed = {*checks["quality"]}
    failed |= {"duplicate"} if checks["duplicate_of"] is not None else set()
    failed |= {"false claim"} if any(claim["right"] is False for claim in checks["claims"]) else set()
    failed |= {"unsupported"} if False in checks["supported"] else set()
    return next((f"dropped: {name}" for name in drop if name in failed), None)


def _absent(request: RowRequest, objects: AbsentObjects, pairs: int, options: RowOptions) -> dict | None:
    if request.kind != "conversation":
        return None
    if (pair := absent_pair(request.context, objects, options.avoidance, options.seed)) is None:
        return None
    position = random.Random(f"position/{options.seed}/{request.context.id}").randint(0, pairs)
    return {"position": position, "pair": pair}


def write_rows(out: Path, requests: Sequence[RowRequest], records: Sequence[dict], seed: int) -> Counter[str]:
    """Writes checks.jsonl and instruct.json. Returns the number of rows by kind that were kept."""
    rows, kept = [], Counter()
    for request, record in zip(requests, records, strict=True):
        if record["kept"]:
            pairs = list(record["pairs"])
            if record["absent"] is not None:
                pairs.insert(record["absent"]["position"], record["absent"]["pair"])
            rows.append(instruction_row(request.context, request.kind, pairs, seed))
            kept[request.kind] += 1
    write_whole(out / CHECKS, "".join(json.dumps(record) + "\n" for record in records))
    write_whole(out / ROWS, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return kept
