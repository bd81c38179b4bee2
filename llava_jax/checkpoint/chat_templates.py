"""Finds the conversation template of a model: what its chat template is, in whichever file it is.

The chat template is a Jinja text in chat_template.jinja, chat_template.json, processor_config.json or
tokenizer_config.json of a folder (the first one counts, as in transformers), or in a GGUF. See `text.chat_template`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_jax.checkpoint.external import folder_of
from llava_jax.checkpoint.gguf_files.file import GgufFile, is_gguf
from llava_jax.checkpoint.native.workdir_model import is_workdir_model, open_workdir_model
from llava_jax.config.schema import Config
from llava_jax.errors import DataError
from llava_jax.output.console import log
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import read_object
from llava_jax.text.chat_template import Recognition, bos_and_eos, default_chat_template, recognise
from llava_jax.text.templates import DEFAULT_TEMPLATE, find_template
from llava_jax.text.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template.jinja"
OTHER_FILES = ("chat_template.json", "processor_config.json")  # of processors; then the tokenizer's own


def read_chat_template(folder: Path, tokenizer: Tokenizer, is_own: bool) -> Recognition | None:
    """Returns what the chat template of a folder is; None if it has none. tokenizer: `is_own` if it was read from the
    folder, so that tokenizer_config.json need not be read again. Raises DataError for a broken JSON file."""
    file = folder / CHAT_TEMPLATE
    if file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        if "{" not in text and (fault := wrong_kind(file)):  # no Jinja, but e.g. a git-lfs pointer
            return Recognition("", f"{file} {fault}")
        return recognise_chat_template(text, tokenizer)
    names = OTHER_FILES if is_own else (*OTHER_FILES, "tokenizer_config.json")
    for name in names:
        if value := read_settings(folder / name).get("chat_template"):
            return recognise_chat_template(value, tokenizer)
    return recognise_chat_template(tokenizer.chat_template if is_own else "", tokenizer)


def recognise_chat_template(value: Any, tokenizer: Tokenizer) -> Recognition | None:
    """Returns what the value of a key `chat_template` is (text, or a list of named texts); None if it is empty."""
    try:
        text = default_chat_template(value)
    except DataError as error:
        return Recognition("", str(error))
    return recognise(text, *bos_and_eos(tokenizer)) if text.strip() else None


def model_chat_template(path: Path, tokenizer: Tokenizer) -> Recognition | None:
    """Returns what the chat template of a model or tokenizer at `path` is (a folder or file of any format; a workdir
    records the name); None if it has none. Raises DataError for what cannot be read."""
    if is_workdir_model(path):
        return Recognition(open_workdir_model(path).template)
    if is_gguf(path):
        return recognise_chat_template(GgufFile(path).chat_template, tokenizer)
    return read_chat_template(folder_of(path), tokenizer, is_own=False)


@functools.cache  # each message once in a process, which may open a model several times
def warn(message: str) -> None:
    """Logs a warning to standard error."""
    log(message, to_stderr=True)


def chosen_template(recognition: Recognition | None, path: Path, option: str) -> str:
    """Returns the recognised template, else DEFAULT_TEMPLATE, with a warning if the chat template of `path` is none of
    ours. option: what chooses another."""
    if recognition and not recognition.template:
        warn(
            f"warning: the chat template of {path} is none of this package's, and {DEFAULT_TEMPLATE} is used instead, "
            f"which may make answers worse. Choose another with {option}. Reason: {recognition.fault}"
        )
    return recognition and recognition.template or DEFAULT_TEMPLATE


def stop_ids_of(folder: Path, vocabulary: int) -> tuple[int, ...]:
    """Returns the ids in `eos_token_id` of a folder's generation_config.json, a number or a list. One that the model of
    `vocabulary` tokens cannot generate is ignored, with a warning. Raises DataError for a broken file."""
    file = folder / "generation_config.json"
    value = read_settings(file).get("eos_token_id")
    return _tokens_of(value if isinstance(value, list) else [value], vocabulary, f"{file}: eos_token_id")


def gguf_stop_ids(file: GgufFile, vocabulary: int) -> tuple[int, ...]:
    """Returns the ids that end an answer besides the end of sequence: of a turn and of a message, as in llama.cpp."""
    ids = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    return _tokens_of(ids, vocabulary, f"{file.path}: the end of a turn")


def _tokens_of(ids: list, vocabulary: int, where: str) -> tuple[int, ...]:
    ids = [id for id in ids if id is not None]
    others = [id for id in ids if type(id) is not int or not 0 <= id < vocabulary]
    if others:
        warn(f"warning: {where} has {others}, not tokens of the model (0 to {vocabulary - 1}); ignored")
    return tuple(id for id in ids if id not in others)


def read_settings(file: Path) -> dict:
    """Returns the object in a JSON file, {} if there is no file. Raises DataError for a broken one."""
    return read_object(file, "how the model was trained") if file.exists() else {}


def with_templates(
    config: Config, recorded: dict, tokenizer: Tokenizer, log_line: Callable[[str], None], is_main: bool
) -> Config:
    """Returns the config with the template of every stage: its own, else the one recorded in the workdir, else that of
    the chat template of `load.llm`, else DEFAULT_TEMPLATE. Logs what was chosen, and where a stage's own differs.

    recorded: config.json of the workdir, {} if it is new. is_main: whether this process logs warnings.
    """
    known = {
        name: recorded.get("stages", {}).get(name, {}).get("data", {}).get("template", "") for name in config.stages
    }
    path, is_read = Path(config.load.llm), bool(config.load.llm) and not all(known.values())
    recognition = model_chat_template(path, tokenizer) if is_read and path.exists() else None  # a resume needs no files
    own = recognition.template if recognition else ""
    stages = {}
    for name, stage in config.stages.items():
        template = stage.data.template
        if template and own not in ("", template) and not find_template(template).text_is_dropped:
            log_line(f"{name}: data.template={template} is used; the chat template of load.llm is {own}")
        if not template:
            template, source = known[name], "as in the workdir"
            if not template:
                template = own or DEFAULT_TEMPLATE
                source = f"the chat template of {path}" if own else "the default"
                if is_main:
                    chosen_template(recognition, path, f"--config.stages.{name}.data.template")
            log_line(f"{name}: data.template is {template}, {source}")
        stages[name] = dataclasses.replace(stage, data=dataclasses.replace(stage.data, template=template))
    return dataclasses.replace(config, stages=stages)
