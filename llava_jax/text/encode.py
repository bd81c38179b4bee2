"""Encodes conversations as token ids and target masks, both from the same segments.

Legend: T = tokens of one row before, L = after images are expanded. ids: int32[T]; mask: bool[T], True where the token
is trained on (the loss does the shift).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.templates import IMAGE_MARKER, Segment, find_template, render, stop_string
from llava_jax.text.tokenizer import Tokenizer

IMAGE_ENDS = "<im_start>", "<im_end>"
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def tokenize(
    tokenizer: Tokenizer, template: str, turns: Sequence[tuple[str, str]], images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a training conversation as (ids int32[T], mask bool[T]); each image is a single IMAGE_TOKEN_ID.

    Supervised are the answers with their stops, and in `llava_v0` also the `###` and `### Assistant: ` that the
    original trained on. With the LLaMA tokenizer the ids equal those of the original implementation:

        tokenize(llama, "plain", [("human", "<image>"), ("gpt", "a red bus")], images=1) ==
            ([1, -200, 263, 2654, 3593, 13], [False, False, True, True, True, True])

    Raises DataError for what `render` rejects and if the number of `<image>` markers is not `images`, ConfigError if
    the template needs a special token that the tokenizer lacks.
    """
    return encode_segments(tokenizer, template, render(template, turns), images)


def tokenize_prompt(tokenizer: Tokenizer, template: str, turns: Sequence[tuple[str, str]], images: int) -> np.ndarray:
    """Encodes a conversation that ends with a human turn up to the assistant cue: ids int32[T]. Raises as `tokenize`.

    They equal the ids before that answer in `tokenize`, except in `llava_v0`, whose original used two different
    strings.
    """
    return encode_segments(tokenizer, template, render(template, turns, open_answer=True), images)[0]


def stop_ids(tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
    """Token ids that end an answer: the end of sequence, the template's (`<|im_end|>` in `chatml`), and the others that
    generation_config.json lists. Raises as `tokenize`."""
    tail = find_template(template).train.tail
    specials = [_special_id(tokenizer, template, segment.text) for segment in tail if segment.kind == "special"]
    return tuple(dict.fromkeys([tokenizer.eos_id, *specials, *tokenizer.end_ids]))


def stop_strings(template: str) -> tuple[str, ...]:
    """Texts that end an answer in a template that has no special token for it (see `stop_ids`)."""
    has_token = any(segment.kind == "special" for segment in find_template(template).train.tail)
    return () if has_token else (stop_string(template),)


def encode_segments(
    tokenizer: Tokenizer, template: str, segments: Sequence[Segment], images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes the segments of `render` as `tokenize` does. Raises as `tokenize`, except for the errors of `render`."""
    markers = sum(segment.kind == "image" for segment in segments)
    if markers != images:
        raise DataError(
            f"the human turns hold {markers} <image> marker(s), but the sample has {images} image(s); "
            "write one marker per image",
            "placeholder mismatch",
        )
    ids = [tokenizer.bos_id] if tokenizer.add_bos else []
    mask = [False] * len(ids)
    # SentencePiece puts a space before the start of a text: the start of the row, of a piece after an image (LLaVA
    # encodes those one by one) and, in legacy tokenizers, of what follows a special token.
    starts_text = True
    for text, is_target, kind in _strip_beside_specials(tokenizer, template, segments):
        if kind == "image":
            new, starts_text = [IMAGE_TOKEN_ID], True
        elif kind == "special":
            new, starts_text = [_special_id(tokenizer, template, text)], tokenizer.legacy
        else:
            new, starts_text = tokenizer.encode(text, dummy_prefix=starts_text), starts_text and not text
        ids += new
        mask += [is_target] * len(new)
    return np.array(ids, np.int32), np.array(mask, bool)


def _strip_beside_specials(tokenizer: Tokenizer, template: str, segments: Sequence[Segment]) -> list[Segment]:
    """The segments without the white space that special tokens with lstrip or rstrip remove, like Phi-3's."""
    kept = list(segments)
    for i, (text, _, kind) in enumerate(segments if tokenizer.strips else ()):
        if kind != "special":
            continue
        flags = tokenizer.strips.get(_special_id(tokenizer, template, text), (False, False))
        for strip, indices in zip((str.rstrip, str.lstrip), (range(i)[::-1], range(i + 1, len(kept))), strict=True):
            if not flags[strip is str.lstrip]:
                continue
            for j in itertools.takewhile(lambda j: kept[j].kind == "text", indices):
                kept[j] = kept[j]._replace(text=strip(kept[j].text, WHITE_SPACE))
                if kept[j].text:
                    break
    return kept


def _special_id(tokenizer: Tokenizer, template: str, name: str) -> int:
    """The id of a special token; `</s>` and `<s>` are the tokenizer's own end and beginning of a sequence."""
    token = {"</s>": tokenizer.eos_id, "<s>": tokenizer.bos_id}.get(name, tokenizer.special.get(name))
    if token is None:
        raise ConfigError(
            f"template {template!r} needs the special token {name!r}, which this tokenizer does not have; "
            "use a template without it (vicuna_v1 works with every tokenizer) or a tokenizer that has it"
        )
    return token


def expand_images(ids: np.ndarray, mask: np.ndarray, features: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32[T], mask bool[T]) -> (int32[L], bool[L]): each IMAGE_TOKEN_ID becomes `features` of them.

    expand_images([1, -200, 263], [False, False, True], 3) == ([1, -200, -200, -200, 263], [F, F, F, F, True])
    """
    is_image = ids == IMAGE_TOKEN_ID
    copies = np.where(is_image, features, 1)
    return np.repeat(ids, copies), np.repeat(mask & ~is_image, copies)


def encode_row(
    turns: Sequence[tuple[str, str]], images: int, *, tokenizer: Tokenizer, template: str, features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a training conversation as (ids int32[L], mask bool[L]), images expanded, uncut. Raises as `tokenize`."""
    return expand_images(*tokenize(tokenizer, template, turns, images), features)


def encode_prompt(
    turns: Sequence[tuple[str, str]],
    images: int,
    *,
    tokenizer: Tokenizer,
    template: str,
    features: int,
    wraps_images: bool = False,
) -> np.ndarray:
    """Encodes a conversation that ends with a human turn up to the assistant cue, images expanded: ids int32[L].

    wraps_images: see `wrap_images`. Raises as `tokenize`.
    """
    options = dict(tokenizer=tokenizer, template=template, features=features, wraps_images=wraps_images)
    return encode_turns(turns, images, **options)[0]


def encode_turns(
    turns: Sequence[tuple[str, str]],
    images: int,
    *,
    tokenizer: Tokenizer,
    template: str,
    features: int,
    wraps_images: bool,
    literal_marker: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """`encode_prompt` -> (ids int32[L], bool[L]: which are those of earlier answers, with their stops).

    literal_marker: what stands in the turns for an `<image>` that is ordinary text.
    """
    segments = render(template, turns, open_answer=True)
    if literal_marker:
        segments = [s._replace(text=s.text.replace(literal_marker, IMAGE_MARKER)) for s in segments]
    ids, mask = encode_segments(tokenizer, template, segments, images)
    if wraps_images:
        mask = np.repeat(mask, np.where(ids == IMAGE_TOKEN_ID, 3, 1))
        ids = wrap_images(tokenizer, ids)
    return expand_images(ids, mask, features)


def expand_image_tokens(tokenizer: Tokenizer, ids: np.ndarray, features: int, wraps_images: bool) -> np.ndarray:
    """ids int32[T] of a prompt -> int32[L]: `expand_images`, after `wrap_images` if the model needs that."""
    if wraps_images:
        ids = wrap_images(tokenizer, ids)
    return expand_images(ids, np.zeros(len(ids), bool), features)[0]


def wrap_images(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """ids int32[T] with `<im_start>` before and `<im_end>` after each IMAGE_TOKEN_ID, for models whose config.json has
    `mm_use_im_start_end` (LLaVA v0 and the first of v1). Raises as `image_ends`."""
    start, end = image_ends(tokenizer)
    wrapped = [x for id in ids for x in ((start, id, end) if id == IMAGE_TOKEN_ID else (id,))]
    return np.array(wrapped, np.int32)


def image_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of `<im_start>` and `<im_end>`. Raises DataError where the tokenizer lacks one."""
    if missing := [name for name in IMAGE_ENDS if name not in tokenizer.special]:
        raise DataError(
            f"the model takes images between {' and '.join(IMAGE_ENDS)} (mm_use_im_start_end), but the tokenizer has "
            f"no special token {missing[0]}; use the tokenizer that belongs to the weights"
        )
    start, end = (tokenizer.special[name] for name in IMAGE_ENDS)
    return start, end


def fit(ids: np.ndarray, mask: np.ndarray, length: int, overlong: str) -> tuple[np.ndarray, np.ndarray]:
    """Limits an expanded row to `length` tokens and checks that some of them are supervised.

    overlong: "truncate" keeps the first `length` tokens, as LLaVA does after expansion. An image run (or several with
    nothing between them) that would be cut is dropped whole, with all that follows. "error" raises instead.

        fit([1, -200, -200, 263, 2], [F, F, F, T, T], 4, "truncate") == ([1, -200, -200, 263], [F, F, F, T])

    Raises DataError for a row that is too long under "error" or has no supervised token left; ConfigError for another
    policy.
    """
    if overlong not in ("truncate", "error"):
        raise ConfigError(f"overlong={overlong!r} is unknown; use 'truncate' or 'error'")
    total = len(ids)
    if total > length:
        if overlong == "error":
            message = f"the row has {total} tokens, the limit is {length}; raise the limit or shorten the sample"
            raise DataError(message, "overlong")
        end = length
        if ids[end] == IMAGE_TOKEN_ID:
            while end and ids[end - 1] == IMAGE_TOKEN_ID:
                end -= 1
        ids, mask = ids[:end], mask[:end]
    if not mask.any():
        raise DataError(
            f"no supervised token is left of {total} within a length of {length}; "
            "raise the length, or shorten the question or drop images",
            "no supervised tokens",
        )
    return ids, mask
