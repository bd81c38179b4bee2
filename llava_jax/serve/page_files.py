"""The files of the chat page: read once, so that a request can name nothing else."""

import dataclasses
import json
from importlib import resources

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "png": "image/png", "svg": "image/svg+xml",
}  # fmt: skip
INDEX = "index.html"


@dataclasses.dataclass(frozen=True)
class Page:
    """files: name below /static/ -> (content, media type). examples: {"image": address, "question": text} each."""

    files: dict[str, tuple[bytes, str]]
    examples: list[dict[str, str]]


def load_page() -> Page:
    """Reads the page and its examples from the package."""
    folder = resources.files("llava_jax.serve") / "page"
    files, examples = {}, []
    for prefix, source in (("", folder), ("examples/", folder / "examples")):
        for file in source.iterdir() if source.is_dir() else ():
            suffix = file.name.rpartition(".")[2]
            if file.is_file() and suffix in MEDIA_TYPES:
                files[prefix + file.name] = file.read_bytes(), MEDIA_TYPES[suffix]
    listing = folder / "examples" / "examples.json"
    if listing.is_file():
        for example in json.loads(listing.read_text(encoding="utf-8")):
            address = f"/static/examples/{example['image']}"
            examples.append({"image": address, "question": example["question"]})
    return Page(files, examples)
