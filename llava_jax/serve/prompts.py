"""Makes the engine's prompts of chat requests: text, images and what is known of earlier answers."""

from llava_jax.api.messages import parse_messages
from llava_jax.errors import DataError, TooLong
from llava_jax.images.faults import CHAT_HINT
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.inference.engine import GenerationConfig, Prompt, answer_limit
from llava_jax.serve.refusal import Refusal
from llava_jax.serve.scheduler import Backend
from llava_jax.serve.schema import ChatRequest
from llava_jax.text.encode import encode_turns


def prepare(backend: Backend, chat: ChatRequest) -> tuple[Prompt, GenerationConfig]:
    """Returns what `Scheduler.submit` needs. Decodes images and encodes text: call it beside the event loop.

    Raises Refusal 400 for messages that the template does not allow, for an image that cannot be read, and for a prompt
    that leaves no room for an answer.
    """
    model, engine = backend.model, backend.engine
    try:
        turns, sources = parse_messages(chat.messages)
        if sources and not model.config.vision:
            raise DataError("this is a language model alone: it accepts no images")
        ids, mask = encode_turns(
            turns, len(sources), tokenizer=model.tokenizer, template=model.template, features=model.config.features,
            wraps_images=model.wraps_images, literal_marker=chat.literal_marker,
        )  # fmt: skip
        ids = backend.memory.restore(ids, mask, [text for role, text in turns if role == "gpt"])
        settings = model.settings(*chat.stop, **chat.sampling)
        if len(ids) >= engine.length:  # before any image is decoded
            raise TooLong(f"the prompt has {len(ids)} tokens, image tokens included, and a slot {engine.length}")
        pixels = [
            preprocess(load_image(source, name, hint=CHAT_HINT), model.config.image_size, model.aspect)
            for source, name in sources
        ]
        prompt = Prompt(ids, pixels)
        answer_limit(model.config, "the prompt", prompt, settings.max_new_tokens, engine.length)
    except TooLong as error:
        raise Refusal(400, f"{error}; shorten it", param="messages", code="context_length_exceeded") from None
    except DataError as error:
        raise Refusal(400, str(error), param="messages", code="invalid_messages") from None
    return prompt, settings
