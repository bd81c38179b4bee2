"""The numbers of a run of `datagen instruct`: yield, cost, rejects, lengths, questions, duplicates, truth."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llava_jax.data.inspection.parallel import CHUNK, map_rows
from llava_jax.datagen.assemble import CHECKS, ROWS, vocabulary_of
from llava_jax.datagen.categories import Vocabulary
from llava_jax.datagen.contexts import ImageContext
from llava_jax.datagen.duplicates import WORD
from llava_jax.datagen.instruct import read_folder
from llava_jax.datagen.prompts import KINDS
from llava_jax.datagen.quality import FAULTS
from llava_jax.datagen.truth import ALL, Truth, check_text, measure_truth
from llava_jax.errors import DataError
from llava_jax.llm_client.settings import BATCH_PRICE
from llava_jax.output.files import read_text
from llava_jax.output.json_text import parse_json
from llava_jax.text.templates import IMAGE_MARKER

Record = Mapping[str, Any]  # a line of checks.jsonl
# Mean words of GPT-4's answers: LLaVA-Bench (COCO), 30 answers of each kind.
PUBLISHED_WORDS = {"conversation": 16.5, "detail": 78.0, "reasoning": 113.0}
AUXILIARIES = "is are was were do does did can could has have had will would should may might"
QUESTION_TYPES = {  # type: regular expression of how the question begins; the first that matches
    "how many": r"how (many|much)\b|what (is )?the (total )?number of\b",
    "color": r"(what|which) colou?rs?\b|what (is|are) the colou?rs?\b",
    "where": r"where\b|what is the (location|position)\b",
    "why": r"why\b|what (is|are|could be|might be|may be) (an? |the |some )?(potential |possible )?reasons?\b",
    "how": r"how\b",
    "who": r"(who|whose|whom)\b",
    "when": r"when\b|(what|which) time\b",
    "which": r"which\b",
    "what": r"what\b",
    "request": r"((can|could|would|will) you )?(please )?(describe|explain|elaborate|tell|give|provide|list|name)\b",
    "yes or no": rf"({AUXILIARIES.replace(' ', '|')})\b",
    "other": "",
}
TYPE_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in QUESTION_TYPES.items()}
FIELDS = {  # of a line of checks.jsonl: the types of the value
    "id": (str,), "image": (str,), "kind": (str,), "kept": (bool,), "reason": (str, type(None)), "pairs": (list,),
    "quality": (list,), "duplicate_of": (str, type(None)), "input_tokens": (int, type(None)),
    "output_tokens": (int, type(None)), "is_batch": (bool, type(None)), "supported": (list,),
    "absent": (dict, type(None)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InstructRun:
    """What the folder of a run holds. contexts: by id. records: checks.jsonl. rows: instruct.json, the kept records."""

    settings: Mapping[str, Any]
    contexts: Mapping[str, ImageContext]
    records: Sequence[Record]
    rows: Sequence[Mapping[str, Any]]

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(list(self.contexts.values()))

    @property
    def kept(self) -> list[Record]:
        return [record for record in self.records if record["kept"]]

    @property
    def parsed(self) -> list[Record]:
        """The records of replies with questions and answers, kept or not."""
        return [record for record in self.records if record["pairs"]]


def read_run(out: Path) -> InstructRun:
    """Reads the folder that `datagen instruct` wrote. Raises DataError, with file and line, for a part that is missing
    or damaged, and for parts of different runs."""
    settings, contexts = read_folder(out)
    by_id = {context.id: context for context in contexts}
    records = []
    for number, line in enumerate(read_text(out / CHECKS).splitlines(), 1):
        records.append(_checked_record(line, by_id, f"{out / CHECKS}: line {number}"))
    try:
        rows = parse_json(read_text(out / ROWS))
        ids = [(row["id"], row["conversations"][0]["value"][:0]) for row in rows]
    except (ValueError, TypeError, LookupError):
        raise DataError(f"{out / ROWS}: is not the JSON that `datagen instruct` writes. {_ADVICE}") from None
    if ids != [(record["id"], "") for record in records if record["kept"]]:
        raise DataError(f"{out / ROWS}: does not hold the rows that {CHECKS} calls kept. {_ADVICE}")
    return InstructRun(settings, by_id, records, rows)


_ADVICE = "Run `datagen instruct` with the same arguments again: it writes both files and pays for no reply twice."


def _checked_record(line: str, contexts: Mapping[str, ImageContext], where: str) -> Record:
    try:
        record = parse_json(line)
    except ValueError as fault:
        raise DataError(f"{where}: is not JSON ({fault}). {_ADVICE}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: is no object. {_ADVICE}")
    for key, types in FIELDS.items():
        if type(record.get(key)) not in types:
            raise DataError(f"{where}: key {key!r} is missing or of another type. {_ADVICE}")
    absent = record["absent"] or {"position": 0, "pair": ["", ""]}
    are_pairs = type(absent.get("position")) is int and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in [*record["pairs"], absent.get("pair")]
    )
    are_checks = FAULTS.keys() >= set(map(str, record["quality"]))
    are_checks &= all(opinion in (True, False, None) for opinion in record["supported"])
    if record["kind"] not in KINDS or not are_pairs or not are_checks:
        raise DataError(f"{where}: an unknown kind or check, or pairs that are none. {_ADVICE}")
    if record["id"] not in contexts:
        raise DataError(f"{where}: the image {record['id']!r} is not in the contexts of this folder. {_ADVICE}")
    return record


# ----------------------------------------------------------------------------------------------------- numbers


def by_kind(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each kind that has any."""
    groups = {kind: [record for record in records if record["kind"] == kind] for kind in KINDS}
    return {kind: group for kind, group in groups.items() if group}


def reasons(run: InstructRun) -> dict[str, list[Record]]:
    """The records that were not kept by reason, the most frequent first."""
    groups = defaultdict(list)
    for record in run.records:
        if not record["kept"]:
            groups[record["reason"] or "no reason given"].append(record)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def faulty(run: InstructRun) -> dict[str, list[Record]]:
    """The parsed records with each of quality.FAULTS, kept or not."""
    return {name: [record for record in run.parsed if name in record["quality"]] for name in FAULTS}


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of the replies; dollars: None without prices. A request that several images share counts for each."""

    input_tokens: int
    output_tokens: int
    dollars: float | None


def usage(run: InstructRun) -> Usage:
    """What the replies of the teacher used, rejected ones included, opinions of a second model not."""
    tokens = {"input": 0, "output": 0}
    prices, dollars = run.settings.get("prices") or {}, 0.0
    for record in run.records:
        for name in tokens:
            count = record[f"{name}_tokens"] or 0
            tokens[name] += count
            dollars += count * (prices.get(name) or 0.0) * (BATCH_PRICE if record["is_batch"] else 1.0) / 1e6
    is_priced = all(prices.get(name) is not None for name in tokens)
    return Usage(tokens["input"], tokens["output"], dollars if is_priced else None)


def answer_words(records: Sequence[Record]) -> list[int]:
    """The number of words of each answer, in ascending order."""
    return sorted(len(answer.split()) for record in records for _, answer in record["pairs"])


def marker_first(run: InstructRun) -> int:
    """The number of rows that begin with `<image>`."""
    return sum(row["conversations"][0]["value"].startswith(IMAGE_MARKER) for row in run.rows)


def _questions(run: InstructRun) -> Iterator[str]:
    """The teacher's questions in kept rows; those of descriptions come from a fixed list."""
    return (question for record in run.kept if record["kind"] != "detail" for question, _ in record["pairs"])


def question_type(question: str) -> str:
    """One of QUESTION_TYPES, by how a question begins."""
    return next(name for name, pattern in TYPE_PATTERNS.items() if pattern.match(question.strip()))


def question_types(run: InstructRun) -> Counter[str]:
    return Counter(map(question_type, _questions(run)))


def first_words(run: InstructRun) -> Counter[str]:
    """How often a question begins with each word, in lower case."""
    return Counter(match[0].casefold() for question in _questions(run) if (match := WORD.search(question)))


def is_exact_duplicate(record: Record, original: Record) -> bool:
    """Whether the answers of two records have the same words."""
    texts = [[WORD.findall(answer.casefold()) for _, answer in r["pairs"]] for r in (record, original)]
    return texts[0] == texts[1]


def record_key(record: Record) -> str:
    """The name of a record in `duplicate_of`."""
    return f"{record['id']}/{record['kind']}"


def truths(
    run: InstructRun, workers: int = 0, on_progress: Callable[[int], None] = lambda count: None
) -> dict[str, Truth]:
    """The truth of the parsed replies against their boxes, by kind and of all; see `truth.measure_truth`. Replies that
    were not kept count: without those that a filter dropped for false claims, all claims would be right.

    workers: processes; 0: this one. on_progress: gets the number of replies so far.
    """
    parsed, totals, done = run.parsed, defaultdict(Truth), 0
    work = partial(_truths_of, parsed=parsed, contexts=run.contexts, vocabulary=run.vocabulary)
    for parts in map_rows(work, len(parsed), workers):
        for part in parts:
            for kind, truth in part.items():
                totals[kind] += truth
        done = min(done + CHUNK, len(parsed))
        on_progress(done)
    return {kind: totals[kind] for kind in (*KINDS, ALL) if kind in totals}


def _truths_of(
    positions: range, parsed: Sequence[Record], contexts: Mapping[str, ImageContext], vocabulary: Vocabulary
) -> list[dict[str, Truth]]:
    records = parsed[positions.start : positions.stop]
    return [measure_truth(check_text(r["kind"], r["pairs"], contexts[r["id"]], vocabulary) for r in records)]
