"""LlavaModel: a loaded LLaVA or language model, with chat, generation, logits and export.

    lv = llava_jax.load("llava-1.5-7b-hf")
    lv.chat([{"role": "user", "content": "What is unusual here?"}], images=["taxi.jpg"])

See `api.load` for the formats that `llava_jax.load` opens.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from llava_jax.api.arguments import check_path, dtype_name, pixel_array, sampling_options, token_arrays
from llava_jax.api.chat_session import AnswerText, ChatSession
from llava_jax.api.messages import Source, parse_messages
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.llava.export import save_original
from llava_jax.checkpoint.native.workdir_model import save_workdir_model
from llava_jax.checkpoint.open_checkpoint import DTYPES, SourceInfo, check_option
from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig
from llava_jax.errors import DataError, renamed_keywords
from llava_jax.images.faults import CHAT_HINT
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.decode import decode_view
from llava_jax.inference.engine import BatchShape, Generation, GenerationConfig, Prompt, generate, prompt_batch
from llava_jax.models.llava import Llava
from llava_jax.models.params import Params, nested
from llava_jax.runtime.sharding import logical_rules
from llava_jax.text.encode import encode_turns, expand_image_tokens, stop_ids
from llava_jax.text.token_row import Batch
from llava_jax.text.tokenizer import Tokenizer

FORMATS = ("hf", "llava", "orbax")


@dataclasses.dataclass(frozen=True, eq=False)
class LlavaModel:
    """A model with its weights on a mesh. `template`, `aspect` and `wraps_images` are those it was trained with."""

    config: ModelConfig
    params: Params
    mesh: Mesh
    tokenizer: Tokenizer
    template: str
    aspect: str
    image_token_id: int  # the placeholder token of an image feature in ids from transformers' processor
    source_info: SourceInfo = SourceInfo()
    wraps_images: bool = False  # whether each image stands between <im_start> and <im_end>

    def logits(self, input_ids, pixel_values=None, attention_mask=None) -> np.ndarray:
        """Computes logits float32[B, T, V] of what transformers' LlavaProcessor returns: input_ids int[B, T] with one
        image token per feature, pixel_values float[N, 3, H, W] of all images in order, attention_mask int[B, T] with
        padding on either side, where logits are meaningless. Raises DataError if images and image tokens disagree."""
        prompts, is_token = self._prompts(input_ids, pixel_values, attention_mask)
        shape = BatchShape(*is_token.shape, max((len(prompt.images) for prompt in prompts), default=0))
        batch = prompt_batch(prompts, shape, self.config.image_size)
        with jax.set_mesh(self.mesh):
            logits = np.asarray(_logits(Llava(self.config), nested(self.params), batch))
        if np.array_equal(is_token, batch.segment_ids > 0):  # right-padded, like the batch
            return logits
        aligned = np.zeros_like(logits)
        aligned[is_token] = logits[batch.segment_ids > 0]
        return aligned

    def generate(
        self, input_ids, pixel_values=None, attention_mask=None, *, max_new_tokens: int = 512,
        temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """Generates ids int32[B, n], padded to the longest answer with the pad token. Inputs: see `logits`."""
        prompts, _ = self._prompts(input_ids, pixel_values, attention_mask)
        _, numbers = sampling_options(
            (), False, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        settings = GenerationConfig(stop_ids(self.tokenizer, self.template), **numbers)
        answers = generate(Llava(self.config), self._decode_params, prompts, settings, mesh=self.mesh)
        new_ids = np.full((len(answers), max(len(a.ids) for a in answers)), self.tokenizer.pad_id, np.int32)
        for row, answer in zip(new_ids, answers, strict=True):
            row[: len(answer.ids)] = answer.ids
        return new_ids

    @renamed_keywords(is_streamed="stream")
    def chat(
        self, messages: Sequence[dict] | dict | str, images: Sequence[Source] | Source = (), *, stream: bool = False,
        max_new_tokens: int = 512, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0,
        stop: Sequence[str] | str = (), seed: int = 0,
    ) -> str | Iterator[str]:  # fmt: skip
        """Answers OpenAI-style messages. Returns the text, or with `stream` an iterator of text pieces.

        A message is {"role": "user" | "assistant", "content": text or parts}; the first may have the role "system",
        whose text replaces the template's system text. Parts and images are those of `parse_messages`, never URLs.
        Without image parts, all images precede the first question. The iterator counts its `tokens`. Raises DataError
        for invalid messages or images, ConfigError for another invalid argument.
        """
        stops, numbers = sampling_options(
            stop, stream, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        settings = self.settings(*stops, **numbers)
        prompt = self._prompt(messages, images)
        text = AnswerText(self._session.stream(prompt, settings))
        return text if stream else "".join(text).strip()

    def settings(self, *stop: str, **sampling) -> GenerationConfig:
        """Returns a GenerationConfig that stops at the template's end of turn or at one of `stop`. sampling: other
        fields of `GenerationConfig`."""
        return GenerationConfig.of_template(self.tokenizer, self.template, *stop, **sampling)

    def answers(self, prompts: Sequence[Prompt], settings: GenerationConfig) -> list[Generation]:
        """Answers prompts of ids (see `expand_image_tokens`) and pixels as one batch, sharded over the mesh."""
        return generate(Llava(self.config), self._decode_params, prompts, settings, self.tokenizer, self.mesh)

    def expand_image_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Expands ids int32[T] with one IMAGE_TOKEN_ID per image to int32[L]: one per feature, wrapped if needed."""
        return expand_image_tokens(self.tokenizer, ids, self.config.features, self.wraps_images)

    def save(self, path: str | Path, format: str = "hf", dtype: str | None = None) -> None:
        """Writes a new folder. format: `hf` for transformers; `llava`, the original's; `orbax`, our own, in the layout
        of a workdir. dtype: float32 | bfloat16 | float16 of the files; None: each weight's own.

        The folder appears when it is complete. Raises DataError if it exists or cannot be written, for a model that
        the format cannot represent, and for a language model alone.
        """
        if not self.config.vision:
            raise DataError("a language model alone cannot be saved; use it in a run with --config.load.llm=FOLDER")
        check_option(format, FORMATS, "format")
        check_path(path, "path")
        dtype = dtype_name(dtype)
        check_option(dtype, (None, *DTYPES), "dtype")
        path, c, source, tokenizer = Path(path), self.config, self.source_info, self.tokenizer
        if format == "hf":
            image_token_id = self.image_token_id if self.image_token_id < c.llm.vocab_size else None
            save_hf(
                path, self.params, c, tokenizer, dtype, image_token_id, self.template, self.aspect,
                tower=source.hf_tower, wraps_images=self.wraps_images,
            )  # fmt: skip
        elif format == "llava":
            save_original(
                path, self.params, c, tokenizer, source.tokenizer, dtype, self.aspect, source.original,
                source.original_tower, source.tower_is_inside, self.wraps_images, self.template,
            )  # fmt: skip
        else:
            params = {p: x.astype(dtype) for p, x in self.params.items()} if dtype else self.params
            metadata = self.template, self.aspect, self.image_token_id, self.wraps_images
            save_workdir_model(path, params, c, tokenizer, source.tokenizer, *metadata)

    # ------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _decode_params(self) -> dict:
        return decode_view(nested(self.params))

    @functools.cached_property
    def _session(self) -> ChatSession:
        return ChatSession(Llava(self.config), self._decode_params, self.mesh, self.tokenizer)

    def _prompt(self, messages: Sequence[dict] | dict | str, images: Sequence[Source] | Source = ()) -> Prompt:
        turns, sources = parse_messages(messages, images)
        if sources and not self.config.vision:
            raise DataError("this is a language model alone: it accepts no images")
        ids, mask = encode_turns(
            turns, len(sources), tokenizer=self.tokenizer, template=self.template, features=self.config.features,
            wraps_images=self.wraps_images,
        )  # fmt: skip
        ids = self._session.memory.restore(ids, mask, [text for role, text in turns if role == "gpt"])
        images = [load_image(source, name, hint=CHAT_HINT) for source, name in sources]
        pixels = [preprocess(image, self.config.image_size, self.aspect) for image in images]
        return Prompt(ids, pixels)

    def _prompts(self, input_ids, pixel_values, attention_mask) -> tuple[list[Prompt], np.ndarray]:
        """Returns (one prompt per row of the inputs of `logits`, bool[B, T]: which positions are not padding)."""
        image_ids = {self.image_token_id, IMAGE_TOKEN_ID}
        ids, is_token = token_arrays(input_ids, attention_mask, self.config.llm.vocab_size, image_ids)
        is_image = np.isin(ids, list(image_ids)) & is_token
        tokens = np.where(is_image, IMAGE_TOKEN_ID, ids).astype(np.int32)
        features, size = self.config.features, self.config.image_size
        counts = is_image.sum(axis=1)
        pixels = np.zeros((0, size, size, 3), np.float32)
        if pixel_values is not None and features:
            pixels = pixel_array(pixel_values, size)
        image_count = len(pixels) if features or pixel_values is None else 1
        if (image_count or counts.any()) and not features:
            raise DataError("this is a language model alone: it accepts no images")
        if (counts % max(features, 1)).any() or counts.sum() != image_count * features:
            raise DataError(
                f"{image_count} image(s) of {features} features, but {counts.tolist()} image tokens in the rows of "
                f"input_ids; every image needs one token ({self.image_token_id}) per feature"
            )
        images = np.split(pixels, np.cumsum(counts // max(features, 1))[:-1])
        rows = enumerate(zip(tokens, is_token, images, strict=True))
        return [Prompt(row[mask], images, i) for i, (row, mask, images) in rows], is_token


@jax.jit(static_argnums=0)
def _logits(model: Llava, params: dict, batch: Batch):
    with logical_rules():
        return model.apply({"params": params}, batch.tokens, batch.images, batch.positions, batch.segment_ids)
