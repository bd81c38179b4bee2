"""The files of the chat page: read once, so that a request can name nothing else."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "png": "image/png", "svg": "image/svg+xml",
}  # fmt: skip
INDEX = "index.html"


@dataclasses.dataclass(frozen=True)
class Page:
    """files: name below /static/ -> (content, media type). examples: {"image": address, "question": text} each. note:
    what users should know of the model, or ""."""

    files: dict[str, tuple[bytes, str]]
    examples: list[dict[str, str]]
    note: str = ""


def load_page(own_examples: Sequence[tuple[bytes, str]] = (), note: str = "") -> Page:
    """Reads the page from the package. own_examples: (PNG file, question) each, which replace those of the package.

    note: what users should know of the model.
    """
    folder = resources.files("llava_jax.serve") / "page"
    files, examples = {}, []
    for prefix, source in (("", folder), ("examples/", folder / "examples")):
        for file in source.iterdir() if source.is_dir() else ():
            suffix = file.name.rpartition(".")[2]
            if file.is_file() and suffix in MEDIA_TYPES:
                files[prefix + file.name] = file.read_bytes(), MEDIA_TYPES[suffix]
    for number, (picture, question) in enumerate(own_examples):
        name = f"examples/held-out-{number}.png"
        files[name] = picture, MEDIA_TYPES["png"]
        examples.append({"image": f"/static/{name}", "question": question})
    listing = folder / "examples" / "examples.json"
    if listing.is_file() and not own_examples:
        for example in json.loads(listing.read_text(encoding="utf-8")):
            examples.append({"image": f"/static/examples/{example['image']}", "question": example["question"]})
    return Page(files, examples, note)
