"""`llava_jax.load`: a LLaVA from anything, or a language model alone, its weights read straight into the shards of the
devices at hand."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from llava_jax.api.model import DTYPES, Loaded, Origin, one_of
from llava_jax.checkpoint.external import Source, open_source
from llava_jax.checkpoint.gguf_files.file import GgufFile, is_gguf
from llava_jax.checkpoint.huggingface.processor import WRAPPED
from llava_jax.checkpoint.native.workdir_model import Own, is_own, open_own
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import ConfigError, DataError
from llava_jax.models.params import Params, abstract_model
from llava_jax.output.files import read_object
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import param_sharding
from llava_jax.text.templates import IMAGE_MARKER, find_template


def load(
    path: str | Path, *, dtype: str | None = "bfloat16", tower: str | Path | None = None,
    base: str | Path | None = None, tokenizer: str | Path | None = None, template: str | None = None,
    aspect: str | None = None, pickles_allowed: bool = False, mesh: Mesh | None = None,
) -> Loaded:  # fmt: skip
    """A model from a folder of Hugging Face's LLaVA or of the original's, the workdir of a run (its newest checkpoint),
    or what `save` wrote; or a language model alone, from a folder or a GGUF file. Its content decides.

    dtype: float32 | bfloat16 | float16, of the weights; None: each as its file has it. Arithmetic is in bfloat16 where
    all of them are, else in float32. tower, base, pickles_allowed: see `open_source`. tokenizer: where the folder has
    none, or another one. template: None for what the run says, chatml where the model's own chat template is, else
    vicuna_v1. aspect: crop | pad; None takes what the folder's own files say. mesh: None spreads the weights over all
    devices. Raises DataError or ConfigError that name what is missing or does not fit.
    """
    path, mesh = Path(path), mesh or make_mesh(1, -1, 1)
    one_of(dtype, (None, *DTYPES), "dtype")
    one_of(aspect, (None, "crop", "pad"), "aspect")
    find_template(template or "vicuna_v1")
    if is_own(path):
        if tower or base:
            raise ConfigError(f"{path} is a whole model of ours; it takes no tower and no base")
        source = open_own(path)
        found_aspect, found_template, image_token_id = source.aspect, source.template, source.image_token_id
        words_at, wraps_images = tokenizer or source.tokenizer, source.wraps_images
    else:
        source = open_source(path, *(x and Path(x) for x in (tower, base)), pickles_allowed=pickles_allowed)
        source.model("float32")  # a module that is missing is said before a tokenizer that is
        found_aspect, image_token_id = _habits(path)
        at = _with_tokenizer(path, base)
        words_at, chat = tokenizer or at, _chat_template(at)
        found_template = "chatml" if "<|im_start|>" in chat else "vicuna_v1"
        wraps_images = WRAPPED in chat or source.about.get("mm_use_im_start_end") is True
    words = open_tokenizer(str(words_at))
    if image_token_id is None:
        image_token_id = words.special.get(IMAGE_MARKER, words.vocab_size)
    params, config = _read(source, dtype, mesh, words.vocab_size, image_token_id)
    origin = _origin(source, TINY_TOKENIZER if words_at == "tiny" else Path(words_at))
    return Loaded(
        config, params, mesh, words, template or found_template, aspect or found_aspect, image_token_id, origin,
        wraps_images,
    )  # fmt: skip


def _read(
    source: Source | Own, dtype: str | None, mesh: Mesh, words: int, image_token_id: int
) -> tuple[Params, ModelConfig]:
    """(parameters, config) of a source whose tokenizer has `words` words."""
    config = source.model("float32")
    if words > max(config.llm.vocab_size, image_token_id + 1):
        raise DataError(
            f"the tokenizer has {words} tokens, the weights have {config.llm.vocab_size}: they do not belong together"
        )
    shapes, specs = abstract_model(config)
    dtypes = dict.fromkeys(shapes, dtype) if dtype else source.dtypes(shapes)
    like = {
        path: jax.ShapeDtypeStruct(x.shape, dtypes[path], sharding=param_sharding(path, x.shape, specs[path], mesh))
        for path, x in shapes.items()
    }
    is_half = set(dtypes.values()) == {"bfloat16"}
    return source.load(like), source.model("bfloat16" if is_half else "float32")


def _origin(source: Source | Own, tokenizer: Path) -> Origin:
    if isinstance(source, Own):
        return Origin(tokenizer)
    if source.dialect == "hub":
        return Origin(tokenizer, hf_tower=source.tower_prefix)
    if source.dialect == "original":
        inside = source.tower_prefix is not None
        return Origin(tokenizer, source.about, original_tower=source.tower_prefix, tower_is_inside=inside)
    return Origin(tokenizer)


def _with_tokenizer(path: Path, base: str | Path | None) -> Path:
    """Where the model's tokenizer is: a LoRA folder or a projector may have left it to its base."""
    if is_gguf(path):
        return path
    folder = path if path.is_dir() else path.parent
    has_own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return folder if has_own or base is None else Path(base)


def _chat_template(path: Path) -> str:
    """The chat template (jinja) beside the tokenizer at `path`, empty where there is none."""
    if is_gguf(path):
        return GgufFile(path).chat_template or ""
    jinja = path / "chat_template.jinja"
    own = jinja.read_text(encoding="utf-8", errors="replace") if jinja.exists() else ""
    return own + "".join(
        str(_object(path / name).get("chat_template")) for name in ("tokenizer_config.json", "chat_template.json")
    )


def _habits(path: Path) -> tuple[str, int | None]:
    """(aspect, image token) as config.json and preprocessor_config.json say it."""
    if is_gguf(path):
        return "crop", None
    folder = path if path.is_dir() else path.parent
    about = _object(folder / "config.json") | _object(folder / "preprocessor_config.json")
    pads = about.get("image_aspect_ratio") == "pad" or about.get("do_pad") is True
    return "pad" if pads else "crop", about.get("image_token_index", about.get("image_token_id"))


def _object(file: Path) -> dict:
    return read_object(file, "how the model was trained") if file.exists() else {}
