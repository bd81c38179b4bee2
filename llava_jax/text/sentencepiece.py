"""Reads a SentencePiece model file (LLaMA's tokenizer.model) without the sentencepiece package."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from llava_jax.errors import DataError

SPACE = "▁"  # how SentencePiece writes a space inside a piece


def added_token(id: int, content: str, special: bool = True, **flags: Any) -> dict[str, Any]:
    """An entry of `added_tokens` in a tokenizer.json. flags: those that are set."""
    names = "single_word", "lstrip", "rstrip", "normalized"
    return {"id": id, "content": content, "special": special, **{name: bool(flags.get(name)) for name in names}}


def read_sentencepiece(content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads a model file, a protobuf message `ModelProto`: (tokenizer.json as a dict, role -> name of a special token).

    Raises DataError for a file that is no BPE model without normalisation.
    """
    try:
        return _read(content)
    except (LookupError, ValueError, TypeError, struct.error) as error:  # what garbage makes of a parser
        raise DataError("neither a tokenizer.json nor a SentencePiece model, or damaged") from error


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _protobuf(content):
        if field == 1:
            piece = dict(_protobuf(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1)))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_protobuf(value))
    if not pieces:
        raise DataError("not a SentencePiece model: it holds no pieces")
    if (kind := trainer.get(3, 1)) != 2:
        kind = {1: "Unigram", 3: "word", 4: "character"}.get(kind, kind)
        raise DataError(f"a SentencePiece model of type {kind}; only BPE tokenizers are supported")
    settings = {
        "precompiled_charsmap": normalizer.get(2),
        "remove_extra_whitespaces": normalizer.get(4, 1),
        "escape_whitespaces=false": not normalizer.get(5, 1),
        "treat_whitespace_as_suffix": trainer.get(24),
    }
    if names := [name for name, value in settings.items() if value]:
        raise DataError(f"a SentencePiece model with {', '.join(names)}, which LLaMA's does not have; unsupported")

    fields = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # role: number, default
    roles = {role: trainer.get(field, default) for role, (field, default) in fields.items()}
    spec = sentencepiece_spec(pieces, pieces[roles["unk"]][0], bool(normalizer.get(3, 1)))
    return spec, {role: pieces[id][0] for role, id in roles.items() if 0 <= id < len(pieces)}


def sentencepiece_spec(
    pieces: Sequence[tuple[str, float, int]], unknown_token: str, dummy_prefix: bool
) -> dict[str, Any]:
    """The tokenizer.json, as a dict, of a SentencePiece BPE model.

    pieces: text, score and kind (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte) of every token, in
    the order of the ids. dummy_prefix: whether a text begins with a space. The model stores scores, not merges: two
    pieces merge if their concatenation is a piece, higher scores first.
    """
    normal, unknown, control, user_defined = 1, 2, 3, 4
    vocab = {text: id for id, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score, kind in pieces:
        splits = [(text[:at], text[at:]) for at in range(1, len(text))] if kind in (normal, user_defined) else []
        ranked = [(-score, vocab[a], vocab[b], a, b) for a, b in splits if a in vocab and b in vocab]
        merges += sorted(ranked)
    merges.sort(key=lambda merge: merge[0])
    return {
        "version": "1.0",
        "added_tokens": [
            added_token(id, text, special=kind != user_defined)
            for id, (text, _, kind) in enumerate(pieces)
            if kind in (unknown, control, user_defined)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            *([{"type": "Prepend", "prepend": SPACE}] if dummy_prefix else []),
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if dummy_prefix else []),
        ]},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [(a, b) for *_, a, b in merges],
            "unk_token": unknown_token,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }  # fmt: skip


def _protobuf(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of a protobuf message: varints as signed ints, all others as bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << 64) if value >> 63 else value

    while position < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}[wire_type] if wire_type != 2 else varint()
        if not 0 <= size <= len(message) - position:
            raise DataError("a damaged SentencePiece model: a field reaches beyond the end of the file")
        yield key >> 3, message[position : position + size]
        position += size
