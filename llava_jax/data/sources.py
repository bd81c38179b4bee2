"""Random-access sources of examples: the original's training JSON, subsets, and a held-out split.

A source has `__len__` and `__getitem__(index) -> Example`; anything that has them can be trained on.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llava_jax.data.conversation import IMAGE_MARKER
from llava_jax.data.example import Example
from llava_jax.errors import ConfigError, DataError

ROLES = ("human", "gpt")
SPACE = re.compile(r"[ \t\r\n]*")
MAX_HASHED = 100_000_000  # ids; beyond it a split by hash would take hours


class LlavaJson:
    """The original's training file: one JSON array of {"id", "image", "conversations": [{"from", "value"}, ...]}.

    The whole file is parsed and checked once, here; after that only the place of each row is kept (16 bytes a row, so
    that 665K rows, 1 GB of JSON, cost 11 MB) and a row is read when asked for. Image files are opened by nobody yet.

    - `image` (or `images`) is a path below `image_folder` or a list of them; a row without it is text only.
    - Other keys are ignored. A number as id is taken as its text.
    - A leading "gpt" turn is dropped, as the original does; then turns alternate, human first and gpt last.
    - With one image, all markers of a turn become one at its front, as the original does: `"<image>\\n" + text`. With
      several images they stay where they are. In an answer, `<image>` is ordinary text.
    - Where the original trains on text alone in silence (`image` without `<image>`) or shifts the images of the rest of
      the batch (two turns with `<image>`), this is an error: markers and images must be equally many.

    Raises DataError that names the file, the row and the key, when constructed; for an image path that leaves
    `image_folder` (by "..", absolute, or through a symbolic link), when the row is read. With `is_strict=False` a
    broken row raises only when it is read, and keeps its number: that is how a whole file is searched for faults.
    """

    def __init__(self, path: str | Path, image_folder: str | Path, is_strict: bool = True):
        self.path, self.image_folder = Path(path), Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise DataError(f"{image_folder}: image folder of {path} not found. Unpack the images or correct the path.")
        self._spans, self._stamp, self._broken = _index(self.path, is_strict)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        row_id, turns, images = parse_row(*self.raw(index))
        where = f"{self.path}: sample {row_id!r}"
        return Example(row_id, turns, tuple(below_folder(image, self.image_folder, where) for image in images))

    def example_id(self, index: int) -> str:
        """The id alone, without a look at the file system."""
        return parse_row(*self.raw(index))[0]

    def raw(self, index: int) -> tuple[object, str]:
        """(the row as its JSON says, unchecked; the words that name it in a fault)."""
        index = range(len(self))[index]
        if index in self._broken:
            raise self._broken[index]
        start, end = self._spans[index].tolist()
        try:
            with open(self.path, "rb") as file:
                same = _stamp(file) == self._stamp
                file.seek(start)
                text = file.read(end - start)
        except OSError:
            same = False
        if not same:
            raise DataError(f"{self.path}: changed or gone since it was opened. Start again, and leave it alone.")
        return json.loads(text), f"{self.path}: row {index}"


def llava_json(path: str | Path, image_folder: str | Path) -> LlavaJson:
    """Opens the original's training JSON; see `LlavaJson`."""
    return LlavaJson(path, image_folder)


class Subset:
    """Some indices of a source, as a source. A `range` costs no memory, so an endless source has sub-ranges too.

    >>> list(Subset("abcdef", range(1, 6, 2)))
    ['b', 'd', 'f']
    """

    def __init__(self, source, indices: Sequence[int] | np.ndarray):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.source[int(self.indices[index])]


def held_out_split(source, fraction: float, minimum: int) -> tuple[Subset, Subset]:
    """Splits a source into (train, held out) by the SHA-256 of each example's id.

    An example is held out when its hash, read as a number in [0, 1), is below `fraction`. Only its own id decides, so
    new rows move no other row, the order of rows does not matter, and rows that share an id (one picture's
    conversation, description and reasoning) stay together. When that gives fewer than `minimum`, the lowest hashes are
    held out until there are as many. A source may offer `example_id(index)` where reading an example is costly.

    Raises ConfigError for a fraction outside [0, 1) or a source too long to hash, DataError when nothing is left to
    train on.
    """
    if not 0 <= fraction < 1 or minimum < 0:
        raise ConfigError(f"held-out fraction must be in [0, 1) and minimum >= 0; got {fraction} and {minimum}")
    if len(source) > MAX_HASHED:
        raise ConfigError(f"{len(source):,} examples are too many to split by id; take `Subset(source, range(...))`")
    read_id = getattr(source, "example_id", lambda index: source[index].id)
    hashes = np.array([_unit_hash(read_id(index)) for index in range(len(source))])
    held_out = hashes < fraction
    if held_out.sum() < minimum <= len(hashes):
        held_out = hashes <= np.sort(hashes)[minimum - 1]
    if held_out.sum() < minimum or held_out.all():
        raise DataError(
            f"{len(source)} examples: holding out {fraction:.1%}, at least {minimum}, leaves nothing to train on. "
            "Hold out fewer or bring more data."
        )
    return Subset(source, np.flatnonzero(~held_out)), Subset(source, np.flatnonzero(held_out))


def _unit_hash(example_id: str) -> float:
    return int.from_bytes(hashlib.sha256(example_id.encode(errors="surrogatepass")).digest()[:6]) / 2**48


def _stamp(file) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def below_folder(image: str, folder: Path, where: str) -> Path:
    """The file that a row names, below its (resolved) folder. Raises DataError where it is not."""
    try:
        path = (folder / image).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
        path = None
    if path is None or not path.is_relative_to(folder):
        raise DataError(
            f"{where}: image {image!r} does not stay below {folder}. "
            "Move or mount the images below it (links must not lead out), or name a higher folder.",
            "outside the folder",
        )
    return path


def _index(path: Path, is_strict: bool) -> tuple[np.ndarray, tuple[int, int], dict[int, DataError]]:
    """int64[rows, 2], the bytes [start, end) of each row; the stamp of the file; what is wrong with broken JSON.

    Strict: every row is parsed and checked, and the first fault raised. Else broken JSON counts as one row without
    bytes, and the search goes on at the next thing that looks like a row.
    """
    try:
        with open(path, "rb") as file:
            stamp = _stamp(file)
            text = file.read().decode("utf-8")
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: not UTF-8 text (byte {fault.start}). Save it as UTF-8.") from None
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({os.strerror(fault.errno)}). Check the path.") from None
    at = _skip_space(text, 1 if text.startswith("\ufeff") else 0)
    if text[at : at + 1] != "[":
        what = "empty" if at == len(text) else "not a JSON array"
        raise DataError(f"{path}: {what}; expected one array of samples: [{{...}}, {{...}}] (not JSON Lines).")
    at = _skip_space(text, at + 1)
    if text[at : at + 1] == "]":
        raise DataError(f"{path}: an array without samples.")
    decoder, spans, broken = json.JSONDecoder(), [], {}
    done, byte = 0, 0
    while at is not None:
        where = f"{path}: row {len(spans)}"
        rest = at + 1
        try:
            row, end = _decode(decoder, text, at, where)
            if is_strict:
                parse_row(row, where)
            start = byte + len(text[done:at].encode())
            done, byte, rest = end, start + len(text[at:end].encode()), end
            spans.append((start, byte))
            at = _next(text, end, where)
        except DataError as fault:
            if is_strict:
                raise
            broken[len(spans)] = fault
            spans.append((byte, byte))
            at = _next_row(decoder, text, rest)
    return np.array(spans, np.int64), stamp, broken


def _decode(decoder: json.JSONDecoder, text: str, at: int, where: str) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, at)
    except json.JSONDecodeError as fault:
        place = f"line {fault.lineno} column {fault.colno}"
        message = f"{where}: broken JSON at {place}: {fault.msg}. Is the download complete?"
        raise DataError(message, "broken JSON") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply.", "broken JSON") from None


def _next(text: str, end: int, where: str) -> int | None:
    """Where the row behind the one that ends at `end` begins; None behind the last."""
    at = _skip_space(text, end)
    separator = text[at : at + 1]
    at = _skip_space(text, at + 1)
    if separator not in (",", "]"):
        raise DataError(f"{where}: no comma or ] behind it. Is the download complete?", "broken JSON")
    if separator == "]" and at < len(text):
        path = where.rsplit(": row", 1)[0]
        raise DataError(f"{path}: text behind the end of the array. Two files glued together?", "broken JSON")
    return at if separator == "," else None


def _next_row(decoder: json.JSONDecoder, text: str, at: int) -> int | None:
    """The first place from `at` on where an object with conversations begins: turns are objects, too."""
    for brace in re.compile(r"\{").finditer(text, at):
        try:
            row, _ = decoder.raw_decode(text, brace.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        if "conversations" in row:
            return brace.start()
    return None


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def parse_row(row, where: str) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
    """Checks one row of the file -> (id, turns, image names). Raises DataError that begins with `where`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}.", "broken row")
    row_id = row.get("id")
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise DataError(f'{where}: key "id" must be a string. Give every sample one.', "broken row")
    where = f"{where} (id {str(row_id)!r})"
    images = image_names(row, where)
    return str(row_id), _place_markers(_turns(row, where), len(images), where), images


def image_names(row: dict, where: str) -> list[str]:
    """What a row calls its images; none where it is text alone. Raises DataError that begins with `where`."""
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError(f'{where}: has both "image" and "images". Keep one.', "broken row")
    key = "image" if row.get("image") is not None else "images"
    names = row.get(key)
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        message = f'{where}: key "{key}" must be a path or a list of paths. Leave it out for text alone.'
        raise DataError(message, "broken row")
    return names


def _turns(row: dict, where: str) -> list[tuple[str, str]]:
    conversation = row.get("conversations")
    if not isinstance(conversation, list):
        message = f'{where}: key "conversations" must be a list of {{"from": ..., "value": ...}}.'
        raise DataError(message, "broken row")
    turns = []
    for i, turn in enumerate(conversation):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            message = f'{where}: conversations[{i}] needs the keys "from" and "value" with strings.'
            raise DataError(message, "broken row")
        try:
            turn["value"].encode()
        except UnicodeEncodeError:  # half of an emoji: no tokenizer takes it
            message = f"{where}: conversations[{i}] holds half a character (\\ud83d, say). Repair it."
            raise DataError(message, "broken row") from None
        if turn.get("from") not in ROLES:
            message = f'{where}: conversations[{i}]: "from" is {turn.get("from")!r}, not "human" or "gpt".'
            raise DataError(message, "role order")
        turns.append((turn["from"], turn["value"]))
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    if not turns or len(turns) % 2 or any(role != ROLES[i % 2] for i, (role, _) in enumerate(turns)):
        message = f"{where}: conversations must alternate human, gpt, ..., end with gpt and not be empty."
        raise DataError(message, "role order")
    return turns


def _place_markers(turns: list[tuple[str, str]], images: int, where: str) -> tuple[tuple[str, str], ...]:
    if images == 1:
        turns = [(role, _marker_first(text) if role == "human" else text) for role, text in turns]
    markers = sum(text.count(IMAGE_MARKER) for role, text in turns if role == "human")
    if markers != images:
        raise DataError(
            f"{where}: {images} image(s), but {markers} {IMAGE_MARKER} in the questions. "
            "Write one for each image, and none in a sample without.",
            "placeholder mismatch",
        )
    return tuple(turns)


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
