r"""One sample of LLaVA's training data: {"id", "image", "conversations": [{"from", "value"}, ...]}.

- `image` (or `images`) is a path or a list of paths; a row without it is text only.
- Other keys are ignored. A numeric id is converted to text.
- A first "system" turn is kept: it replaces the template's system text. It is never trained on.
- A leading "gpt" turn is dropped, as in the original; then turns alternate, human first and gpt last.
- With one image, all markers of a turn become one at its front, as in the original: `"<image>\n" + text`. With several
  images, markers keep their positions. In an answer or system text, `<image>` is ordinary.
- The number of markers must equal the number of images. The original silently trains on text only (`image` without
  `<image>`), or shifts the images of the rest of the batch (two turns with `<image>`).
"""

from llava_jax.errors import DataError
from llava_jax.text.templates import IMAGE_MARKER

ROLES = ("human", "gpt")


def parse_row(row, where: str) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
    """Checks a row -> (id, turns, image names). Raises DataError, starting with `where`, with the key."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}.", "broken row")
    row_id = row.get("id")
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise DataError(f'{where}: key "id" must be a string. Every sample needs one.', "broken row")
    if any("\ud800" <= c <= "\udfff" for c in str(row_id)):  # cannot be written to reports
        raise DataError(f'{where}: key "id" has a lone surrogate (such as \\ud83d). Repair it.', "broken row")
    where = f"{where} (id {str(row_id)!r})"
    images = image_names(row, where)
    return str(row_id), _normalize_markers(_turns(row, where), len(images), where), images


def image_names(row: dict, where: str) -> list[str]:
    """Returns the image names of a row, [] for text only. Raises DataError, starting with `where`."""
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError(f'{where}: has both "image" and "images". Keep one.', "broken row")
    key = "image" if row.get("image") is not None else "images"
    names = row.get(key)
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        message = f'{where}: key "{key}" must be a path or a list of paths. Remove it from a text-only sample.'
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
        except UnicodeEncodeError:  # a lone surrogate, which no tokenizer accepts
            message = f"{where}: conversations[{i}] has a lone surrogate (such as \\ud83d). Repair it."
            raise DataError(message, "broken row") from None
        if turn.get("from") not in ROLES and (i or turn.get("from") != "system"):
            allowed = '"human" or "gpt"' if i else '"human", "gpt" or "system"'
            message = f'{where}: conversations[{i}]: "from" is {turn.get("from")!r}, not {allowed}.'
            raise DataError(message, "role order")
        turns.append((turn["from"], turn["value"]))
    system = turns[:1] if turns and turns[0][0] == "system" else []
    turns = turns[len(system) :]
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    if not turns or len(turns) % 2 or any(role != ROLES[i % 2] for i, (role, _) in enumerate(turns)):
        message = f"{where}: conversations must alternate human, gpt, ..., end with gpt and not be empty."
        raise DataError(message, "role order")
    return system + turns


def _normalize_markers(turns: list[tuple[str, str]], images: int, where: str) -> tuple[tuple[str, str], ...]:
    if images == 1:
        turns = [(role, _marker_first(text) if role == "human" else text) for role, text in turns]
    markers = sum(text.count(IMAGE_MARKER) for role, text in turns if role == "human")
    if markers != images:
        raise DataError(
            f"{where}: {images} image(s), but {markers} {IMAGE_MARKER} in the questions. "
            "Write one for each image, and none in a text-only sample.",
            "placeholder mismatch",
        )
    return tuple(turns)


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
