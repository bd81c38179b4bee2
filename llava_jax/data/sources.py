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
    `image_folder` (by "..", absolute, or through a symbolic link), when the row is read.
    """

    def __init__(self, path: str | Path, image_folder: str | Path):
        self.path, self.image_folder = Path(path), Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise DataError(f"{image_folder}: image folder of {path} not found. Unpack the images or correct the path.")
        self._spans, self._stamp = _index(self.path)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        row_id, turns, images = self._row(index)
        return Example(row_id, turns, tuple(self._below_folder(image, row_id) for image in images))

    def example_id(self, index: int) -> str:
        """The id alone, without a look at the file system."""
        return self._row(index)[0]

    def _row(self, index: int) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
        index = range(len(self))[index]
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
        row = json.loads(text)
        return _parse_row(row, f"{self.path}: row {index}")

    def _below_folder(self, image: str, row_id: str) -> Path:
        try:
            path = (self.image_folder / image).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
            path = None
        if path is None or not path.is_relative_to(self.image_folder):
            raise DataError(
                f"{self.path}: sample {row_id!r}: image {image!r} does not stay below {self.image_folder}. "
                "Move or mount the images below it (links must not lead out), or name a higher folder."
            )
        return path


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


def _index(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Parses and checks every row -> int64[rows, 2], the bytes [start, end) of each, and the stamp of the file."""
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
    decoder, spans = json.JSONDecoder(), []
    done, byte, separator = 0, 0, ","
    while separator == ",":
        where = f"{path}: row {len(spans)}"
        try:
            row, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as fault:
            place = f"line {fault.lineno} column {fault.colno}"
            raise DataError(f"{where}: broken JSON at {place}: {fault.msg}. Is the download complete?") from None
        except RecursionError:
            raise DataError(f"{where}: nested too deeply.") from None
        _parse_row(row, where)
        start = byte + len(text[done:at].encode())
        done, byte = end, start + len(text[at:end].encode())
        spans.append((start, byte))
        at = _skip_space(text, end)
        separator = text[at : at + 1]
        at = _skip_space(text, at + 1)
    if separator != "]":
        raise DataError(f"{where}: no comma or ] behind it. Is the download complete?")
    if at < len(text):
        raise DataError(f"{path}: text behind the end of the array. Two files glued together?")
    return np.array(spans, np.int64), stamp


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _parse_row(row, where: str) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
    """Checks one row -> (id, turns, image names)."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}.")
    row_id = row.get("id")
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise DataError(f'{where}: key "id" must be a string. Give every sample one.')
    where = f"{where} (id {str(row_id)!r})"
    images = _image_names(row, where)
    return str(row_id), _place_markers(_turns(row, where), len(images), where), images


def _image_names(row: dict, where: str) -> list[str]:
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError(f'{where}: has both "image" and "images". Keep one.')
    key = "image" if row.get("image") is not None else "images"
    names = row.get(key)
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{where}: key "{key}" must be a path or a list of paths. Leave it out for text alone.')
    return names


def _turns(row: dict, where: str) -> list[tuple[str, str]]:
    conversation = row.get("conversations")
    if not isinstance(conversation, list):
        raise DataError(f'{where}: key "conversations" must be a list of {{"from": ..., "value": ...}}.')
    turns = []
    for i, turn in enumerate(conversation):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise DataError(f'{where}: conversations[{i}] needs the keys "from" and "value" with strings.')
        try:
            turn["value"].encode()
        except UnicodeEncodeError:  # half of an emoji: no tokenizer takes it
            raise DataError(f"{where}: conversations[{i}] holds half a character (\\ud83d, say). Repair it.") from None
        if turn.get("from") not in ROLES:
            raise DataError(f'{where}: conversations[{i}]: "from" is {turn.get("from")!r}, not "human" or "gpt".')
        turns.append((turn["from"], turn["value"]))
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    if not turns or len(turns) % 2 or any(role != ROLES[i % 2] for i, (role, _) in enumerate(turns)):
        raise DataError(f"{where}: conversations must alternate human, gpt, ..., end with gpt and not be empty.")
    return turns


def _place_markers(turns: list[tuple[str, str]], images: int, where: str) -> tuple[tuple[str, str], ...]:
    if images == 1:
        turns = [(role, _marker_first(text) if role == "human" else text) for role, text in turns]
    markers = sum(text.count(IMAGE_MARKER) for role, text in turns if role == "human")
    if markers != images:
        raise DataError(
            f"{where}: {images} image(s), but {markers} {IMAGE_MARKER} in the questions. "
            "Write one for each image, and none in a sample without."
        )
    return tuple(turns)


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
