"""Messages and images as callers have them: the forms of OpenAI's and of Hugging Face's chats."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_jax.api.arguments import brief_repr
from llava_jax.errors import DataError
from llava_jax.text.templates import IMAGE_MARKER

ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
MAX_ENCODED = 128 << 20  # characters of an image in base64, 96 MiB of file
SOURCE_KEYS = "image", "path", "url", "base64"  # of an image part, as in transformers' chat templates
SOURCES = "a path, the bytes of a file, a PIL image or a uint8 array [height, width, 3]"
Source = str | PathLike | bytes | Image.Image | np.ndarray


def parse_messages(messages: Any, images: Any = ()) -> tuple[list[tuple[str, str]], list[tuple[Any, str]]]:
    """Returns (turns of (role, text with one `<image>` per image), the images in this order as (source, name)).

    messages: a list of {"role": ..., "content": text or parts}; one of them; or the text of a question. Only messages
    of the user have images, and `<image>` in their texts counts as one. A part is a text, {"type": "text", "text": ..},
    {"type": "image_url", "image_url": {"url": ..}} as for OpenAI, or {"type": "image"}, which takes the next of
    `images` unless it has its source as image, path, url or base64. images: a list of sources (`SOURCES`, or a data
    URI), or one. If the messages ask for none, all of them precede the first question.

    Raises DataError that names the message or the argument.
    """
    given = [image_source(image, f"images[{i}]") for i, image in enumerate(_image_list(images))]
    wanted: list[tuple[Any, str] | None] = []
    turns = [_turn(i, message, wanted) for i, message in enumerate(_message_list(messages))]
    if not turns or turns[-1][0] != "human":
        raise DataError("the last message must have the role 'user'")
    if given and not wanted:
        first = next(i for i, (role, _) in enumerate(turns) if role == "human")
        turns[first] = "human", f"{IMAGE_MARKER}\n" * len(given) + turns[first][1]
        return turns, given
    if wanted.count(None) != len(given):
        raise DataError(
            f"the messages have {wanted.count(None)} image part(s) without a source ({IMAGE_MARKER} in a text counts), "
            f"but images= has {len(given)} image(s); give one for each"
        )
    rest = iter(given)
    return turns, [next(rest) if source is None else source for source in wanted]


def image_source(image: Any, name: str) -> tuple[str | Path | bytes | Image.Image, str]:
    """Returns (what `load_image` reads, its name in errors). name: where the image stands in the arguments.

    A data URI is decoded, an array becomes a PIL image. Raises DataError for a URL and for anything else.
    """
    if isinstance(image, str) and image[:5].lower() == "data:":
        match = re.match(r"data:[\w.+/-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,", image, re.IGNORECASE)
        if match is None:
            raise DataError(f"{name} is a data URI that is not in base64 (data:image/png;base64,...)")
        return _decoded(image[match.end() :], name), name
    if isinstance(image, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", image):
        raise DataError(f"{name} is a URL ({brief_repr(image)}); images are not downloaded, pass a local file")
    if isinstance(image, str | PathLike):
        if not (path := str(image)):
            raise DataError(f"{name} is an empty path; pass {SOURCES}")
        return Path(path), path
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), name
    if isinstance(image, Image.Image):
        return image, name
    if hasattr(image, "__array__"):
        return _from_array(image, name), name
    raise DataError(f"{name} is of type {type(image).__name__}; pass {SOURCES}")


def _from_array(image: Any, name: str) -> Image.Image:
    try:
        pixels = np.asarray(image)
    except Exception as error:  # a tensor on another device, or one that needs its gradient
        raise DataError(f"{name} cannot become a NumPy array ({error}); pass {SOURCES}") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise DataError(
            f"{name} is an array {pixels.dtype}{list(pixels.shape)}; pass uint8 pixels from 0 to 255 of shape "
            "[height, width] or [height, width, channels], with 1, 3 or 4 channels"
        )
    if 0 in pixels.shape:
        raise DataError(f"{name} is an array of shape {list(pixels.shape)}, without pixels")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _decoded(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise DataError(f"{name} has its base64 as {type(text).__name__}, not as a text")
    if len(text) > MAX_ENCODED:
        raise DataError(f"{name} has {len(text):,} characters of base64; at most {MAX_ENCODED:,} are accepted")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is not valid base64 ({error})") from None


def _image_list(images: Any) -> Sequence:
    if images is None:
        return ()
    if isinstance(images, list | tuple):
        return images
    if isinstance(images, str | PathLike | bytes | bytearray | memoryview | Image.Image):
        return [images]
    if hasattr(images, "__array__") and getattr(images, "ndim", 0) in (2, 3, 4):
        return images if images.ndim == 4 else [images]
    raise DataError(f"images is of type {type(images).__name__}; pass a list, each image as {SOURCES}")


def _message_list(messages: Any) -> Sequence:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping):
        return [messages]
    if isinstance(messages, list | tuple):
        return messages
    raise DataError(
        f'messages is of type {type(messages).__name__}; pass [{{"role": "user", "content": "..."}}] or a text'
    )


def _turn(number: int, message: Any, wanted: list[tuple[Any, str] | None]) -> tuple[str, str]:
    """(role, text) of a message; appends its images to `wanted`, None for one of the argument `images`."""
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} is of type {type(message).__name__}, not a dict with role and content")
    if missing := {"role", "content"} - message.keys():
        keys = ", ".join(map(str, message))
        raise DataError(f"message {number} has no {' and no '.join(sorted(missing))}, only the keys ({keys})")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        known = "user or assistant, or system for the first message"
        raise DataError(f"message {number} has the role {brief_repr(role)}, not {known}")
    if content is None:
        raise DataError(f"the content of message {number} is None; pass a text or a list of parts")
    parts = content if isinstance(content, list | tuple) else [content]
    own = wanted if role == "user" else []  # `<image>` in another text is ordinary text
    text = "".join(_part(f"message {number}", part, own) for part in parts)
    if role != "user" and any(isinstance(part, Mapping) and part["type"] != "text" for part in parts):
        raise DataError(f"message {number} of the role {role} has an image; only those of the user can have one")
    return ROLES[role], text


def _part(name: str, part: Any, wanted: list[tuple[Any, str] | None]) -> str:
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            wanted.extend([None] * text.count(IMAGE_MARKER))
            return text
        case {"type": "image_url", "image_url": {"url": source} | str(source)}:
            wanted.append(image_source(source, f"the image of {name}"))
        case {"type": "image"}:
            keys = [key for key in SOURCE_KEYS if part.get(key) is not None]
            if len(keys) > 1:
                raise DataError(f"an image of {name} has {' and '.join(keys)}; pass one of them")
            where = f"the image of {name}"
            if not keys:
                wanted.append(None)
            elif keys == ["base64"]:
                wanted.append((_decoded(part["base64"], where), where))
            else:
                wanted.append(image_source(part[keys[0]], where))
        case _:
            raise DataError(f"{name} has a part that is neither text nor image: {brief_repr(part)}")
    return f"{IMAGE_MARKER}\n"
