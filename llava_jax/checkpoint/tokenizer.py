"""Opens tokenizers of any format, and writes one next to exported weights."""

import shutil
from pathlib import Path

from llava_jax.checkpoint.built_in import BUILT_IN
from llava_jax.checkpoint.gguf_files.file import GgufFile, is_gguf
from llava_jax.checkpoint.gguf_files.tokenizer import read_tokenizer
from llava_jax.output.files import local_path
from llava_jax.text.tokenizer import Tokenizer, load_tokenizer
from llava_jax.text.tokenizer_json import json_text, tokenizer_config, tokenizer_spec

TINY_TOKENIZER = BUILT_IN / "tokenizer"

CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES = ("tokenizer.json", "tokenizer.model", *CONFIG_FILES, "chat_template.jinja", "generation_config.json")


def copy_tokenizer(folder: Path, tokenizer: Tokenizer, source: Path | None, max_length: int) -> None:
    """Writes files into an existing folder from which `load_tokenizer` reads the same tokenizer.

    source: the folder or file it was read from, whose files are copied; for None or a GGUF they are generated.
    max_length: context length in tokens, for generated files. Raises OSError.
    """
    if source is None or is_gguf(source):
        (folder / "tokenizer.json").write_text(json_text(tokenizer_spec(tokenizer)), encoding="utf-8")
        config = json_text(tokenizer_config(tokenizer, max_length))
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return
    if source.is_dir():
        sources = {name: source / name for name in FILES}
    else:
        is_json = source.read_bytes().lstrip()[:1] == b"{"
        sources = {name: source.parent / name for name in CONFIG_FILES}
        sources["tokenizer.json" if is_json else "tokenizer.model"] = source
    for name, file in sources.items():
        if file.is_file():
            shutil.copyfile(file, folder / name)


def tokenizer_location(name: str) -> Path:
    """Returns the folder of the built-in tokenizer for `tiny`, else `name` as a path. Raises ConfigError for a URL."""
    return TINY_TOKENIZER if name == "tiny" else local_path(name, "tokenizer")


def open_tokenizer(name: str) -> Tokenizer:
    """Opens the tokenizer at `tokenizer_location(name)`: a file or folder, see `load_tokenizer`, or a GGUF."""
    path = tokenizer_location(name)
    return read_tokenizer(GgufFile(path)) if is_gguf(path) else load_tokenizer(path)
