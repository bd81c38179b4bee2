"""The single entry point for checkpoints: opens a folder or file of any supported format, detected by content.

    checkpoint = open_checkpoint("llava-1.5-7b-hf")
    params = checkpoint.parameters.load(like)               # path -> sharded array

It has two readers: `native.workdir_model` for workdirs of runs and for models saved as `orbax`; `external` for folders
in Hugging Face's or the original LLaVA's format, and for GGUF files. Opening parses headers and small files, each once,
and reads no weights.
"""

import dataclasses
from pathlib import Path

from llava_jax.checkpoint.chat_templates import (
    chosen_template,
    gguf_stop_ids,
    read_chat_template,
    recognise_chat_template,
    stop_ids_of,
    warn,
)
from llava_jax.checkpoint.external import ExternalCheckpoint, folder_of, open_external
from llava_jax.checkpoint.gguf_files.file import GgufFile
from llava_jax.checkpoint.gguf_files.tokenizer import read_tokenizer
from llava_jax.checkpoint.huggingface.image_settings import image_settings
from llava_jax.checkpoint.llava.config import wraps_images as original_wraps_images
from llava_jax.checkpoint.native.workdir_model import WorkdirModel, is_workdir_model, open_workdir_model
from llava_jax.checkpoint.tokenizer import open_tokenizer, tokenizer_location
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.chat_template import Recognition
from llava_jax.text.templates import DEFAULT_TEMPLATE, IMAGE_MARKER
from llava_jax.text.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What an export in the format that a model was read from keeps of its source.

    tokenizer: the folder or file it was read from. original: config.json of an original LLaVA. hf_tower,
    original_tower: prefix of the vision tower's tensor names, None for the default. tower_is_inside: whether the
    original's folder contains the tower's tensors. step: of the checkpoint, in a workdir.
    """

    tokenizer: Path | None = None
    original: dict = dataclasses.field(default_factory=dict)
    hf_tower: str | None = None
    original_tower: str | None = None
    tower_is_inside: bool = True
    step: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model whose weights are not read yet, with the settings it was trained with."""

    parameters: ExternalCheckpoint | WorkdirModel  # `load` reads them, `dtypes` returns the stored dtypes
    config: ModelConfig  # computes in float32
    tokenizer: Tokenizer
    template: str
    aspect: str  # crop | pad
    image_token_id: int  # the placeholder token of an image feature in ids from transformers' processor
    wraps_images: bool  # whether each image stands between <im_start> and <im_end>
    source_info: SourceInfo


def open_checkpoint(
    path: str | Path, *, tower: str | Path | None = None, base: str | Path | None = None,
    tokenizer: str | Path | None = None, template: str | None = None, allow_pickle: bool = False,
) -> Checkpoint:  # fmt: skip
    """Opens a whole LLaVA or a language model alone, with its tokenizer.

    tower, base, allow_pickle: see `open_parameters`. tokenizer: a file or folder that replaces the model's own; `tiny`
    is built in. template: replaces the model's own, see `chat_templates`. Raises DataError or ConfigError that names
    what is missing, broken or does not match.
    """
    parameters = open_parameters(path, tower=tower, base=base, allow_pickle=allow_pickle)
    parameters.model("float32")  # a missing module is reported before a missing tokenizer
    tokenizer_path = str(tokenizer) if tokenizer else None
    if isinstance(parameters, WorkdirModel):
        return _open_workdir(parameters, tokenizer_path, template)
    if parameters.gguf:
        return _open_gguf(parameters, parameters.gguf, tokenizer_path, template)
    return _open_folder(parameters, tokenizer_path, template, base and Path(base))


def open_parameters(
    path: str | Path, *, tower: str | Path | None = None, base: str | Path | None = None, allow_pickle: bool = False
) -> ExternalCheckpoint | WorkdirModel:
    """Opens only the weights, of a whole model or of some modules (a CLIP tower, a language model).

    tower: a CLIP folder, for a LLaVA without its own. base: the model that a LoRA folder, a projector or delta weights
    were made from. allow_pickle: also open `.bin` files, see `pickle_reader`. Raises DataError for what is missing,
    broken or unknown, and ConfigError for a `tower` or `base` that is not needed.
    """
    path = Path(path)
    if is_workdir_model(path):
        if tower or base:
            raise ConfigError(f"{path} is a complete native model; leave out tower and base")
        return open_workdir_model(path)
    return open_external(path, tower and Path(tower), base and Path(base), allow_pickle=allow_pickle)


def check_option(value: str | None, allowed: tuple, name: str) -> None:
    """Raises ConfigError if the option `name` has a value that is not in `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(x for x in allowed if x)}")


def _open_workdir(workdir: WorkdirModel, tokenizer_path: str | None, template: str | None) -> Checkpoint:
    name, w = tokenizer_path or workdir.tokenizer, workdir
    try:
        tokenizer, location = open_tokenizer(name), tokenizer_location(name)
    except DataError as e:
        if tokenizer_path or workdir.has_tokenizer:
            raise
        raise DataError(
            f"{workdir.path} holds no tokenizer: an older version wrote it. Its config.json names {name}, relative to "
            f"where the run was started, and that does not open here ({e}). Start there, or pass --tokenizer"
        ) from None
    tokenizer = dataclasses.replace(tokenizer, end_ids=stop_ids_of(location, w.config.llm.vocab_size))
    info = SourceInfo(location, step=w.step)
    return _build_checkpoint(w, tokenizer, template or w.template, w.aspect, w.image_token_id, w.wraps_images, info)


def _open_gguf(
    source: ExternalCheckpoint, file: GgufFile, tokenizer_path: str | None, template: str | None
) -> Checkpoint:
    tokenizer = open_tokenizer(tokenizer_path) if tokenizer_path else read_tokenizer(file)
    recognition = recognise_chat_template(file.chat_template, tokenizer)
    name, tokenizer, wraps_images = _apply(recognition, source, source.path, tokenizer, template)
    tokenizer = dataclasses.replace(tokenizer, end_ids=gguf_stop_ids(file, source.llm.vocab_size))
    info = SourceInfo(tokenizer_location(tokenizer_path or str(file.path)))
    return _build_checkpoint(source, tokenizer, name, "crop", None, wraps_images, info)


def _open_folder(
    source: ExternalCheckpoint, tokenizer_path: str | None, template: str | None, base: Path | None
) -> Checkpoint:
    aspect, image_token_id = _image_settings(source)
    folder = folder_of(source.path)
    if base and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        folder = folder_of(base)  # a LoRA folder or a projector may have no tokenizer of its own
    tokenizer = open_tokenizer(tokenizer_path or str(folder))
    recognition = read_chat_template(folder, tokenizer, is_own=not tokenizer_path)
    name, tokenizer, wraps_images = _apply(recognition, source, folder, tokenizer, template)
    tokenizer = dataclasses.replace(tokenizer, end_ids=stop_ids_of(folder, source.llm.vocab_size))
    wraps_images = wraps_images or original_wraps_images(source.config_json, str(folder / "config.json"))
    info = _source_info(source, tokenizer_location(tokenizer_path or str(folder)))
    return _build_checkpoint(source, tokenizer, name, aspect, image_token_id, wraps_images, info)


def _apply(
    recognition: Recognition | None, source: ExternalCheckpoint, path: Path, tokenizer: Tokenizer, template: str | None
) -> tuple[str, Tokenizer, bool]:
    """Returns (conversation template, tokenizer that begins as the chat template does, whether images are wrapped).
    path: where the chat template is. Warns unless the template is given or known; a whole LLaVA without a chat template
    has the original's."""
    if recognition is None:
        if not template and not source.vision:
            warn(
                f"note: {path} has no chat template; {DEFAULT_TEMPLATE} is used. Choose another with --template "
                "(template=)"
            )
        return template or DEFAULT_TEMPLATE, tokenizer, False
    if recognition.begins_with_bos and not tokenizer.add_bos:
        tokenizer = dataclasses.replace(tokenizer, add_bos=True)
    name = template or chosen_template(recognition, path, "--template (template=)")
    return name, tokenizer, recognition.wraps_images


def _image_settings(source: ExternalCheckpoint) -> tuple[str, int | None]:
    """Returns (aspect, image token id) from the folder's own files."""
    folder = folder_of(source.path)
    has_config = (folder / "config.json").exists()  # a LoRA folder has none; `config_json` is then that of its base
    config = source.config_json if has_config else {}
    return image_settings(folder, config, str(folder / "config.json"), source.vision)


def _source_info(source: ExternalCheckpoint, tokenizer: Path) -> SourceInfo:
    prefix = source.tower_prefix
    if source.dialect == "hub":
        return SourceInfo(tokenizer, hf_tower=prefix)
    if source.dialect == "original":
        return SourceInfo(tokenizer, source.config_json, original_tower=prefix, tower_is_inside=prefix is not None)
    return SourceInfo(tokenizer)


def _build_checkpoint(
    parameters: ExternalCheckpoint | WorkdirModel, tokenizer: Tokenizer, template: str, aspect: str,
    image_token_id: int | None, wraps_images: bool, source_info: SourceInfo,
) -> Checkpoint:  # fmt: skip
    """Builds a Checkpoint. image_token_id: None if the files name none. Raises DataError for a foreign tokenizer."""
    config = parameters.model("float32")
    if image_token_id is None:
        image_token_id = tokenizer.special.get(IMAGE_MARKER, tokenizer.vocab_size)
    if tokenizer.vocab_size > max(config.llm.vocab_size, image_token_id + 1):
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the weights have {config.llm.vocab_size}: they do not "
            "belong together"
        )
    return Checkpoint(parameters, config, tokenizer, template, aspect, image_token_id, wraps_images, source_info)
