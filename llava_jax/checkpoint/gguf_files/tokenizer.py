"""Converts the tokenizer in a GGUF file to Hugging Face's tokenizer files, in memory.

Sources: llama.cpp's `llama-vocab.cpp` and `convert_hf_to_gguf.py`.
"""

from llava_jax.checkpoint.gguf_files.file import GgufFile
from llava_jax.errors import DataError
from llava_jax.text.sentencepiece import added_token, sentencepiece_spec
from llava_jax.text.tokenizer import Tokenizer, build_tokenizer

_ROLES = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # token types, numbered as in SentencePiece
_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)

_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {  # tokenizer.ggml.pre: pattern (None: GPT-2's), split single digits, normalizer, is like LLaMA 3
    "gpt-2": (None, False, None, False),
    "smollm": (None, True, None, False),
    "qwen2": (_LLAMA_3_PATTERN.replace("{1,3}", ""), False, {"type": "NFC"}, False),
    "llama-bpe": (_LLAMA_3_PATTERN, False, None, True),  # words in the vocabulary need no merges; starts with BOS
    "llama3": (_LLAMA_3_PATTERN, False, None, True),
    "llama-v3": (_LLAMA_3_PATTERN, False, None, True),
}


def read_tokenizer(file: GgufFile, legacy: bool | None = None) -> Tokenizer:
    """Builds the tokenizer of a file. legacy: see `load_tokenizer`; a GGUF does not record it, LLaMA's are legacy.

    Raises DataError, naming the file and the key, for tokenizers other than byte-level BPE ("gpt2") with a known
    `tokenizer.ggml.pre` and SentencePiece's BPE ("llama"), and for missing or contradictory keys.
    """
    spec, config = tokenizer_files(file).values()
    try:
        return build_tokenizer(spec, config, {}, legacy)
    except Exception as e:  # the package tokenizers raises bare Exception
        raise DataError(f"{file.path}: tokenizer.ggml.*: {e}") from None


def tokenizer_files(file: GgufFile) -> dict[str, dict]:
    """Returns the contents of tokenizer.json and tokenizer_config.json by name. Raises as `read_tokenizer`."""
    tokens = _list(file, "tokens", str)
    kinds = _list(file, "token_type", int, len(tokens))
    if len(set(tokens)) < len(tokens) or not set(kinds) <= set(range(1, 7)):
        raise DataError(f"{file.path}: tokenizer.ggml.tokens has a duplicate token, or one of unknown token_type")
    roles = {}
    for role, key in _ROLES.items():
        key = f"tokenizer.ggml.{key}_token_id"
        if key in file.metadata or role == "eos":
            roles[role] = file.value(key, int)
            if not 0 <= roles[role] < len(tokens):
                raise DataError(f"{file.path}: {key}={roles[role]} is not one of the {len(tokens)} tokens")
    count = len(tokens)
    while kinds[count - 1] == _UNUSED and count - 1 not in roles.values():
        count -= 1  # padding rows of the embedding
    tokens, kinds = tokens[:count], kinds[:count]
    model = file.value("tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise DataError(f"{file.path}: tokenizer.ggml.model={model!r} is not one of gpt2, llama")
    spec, bos = (_byte_level if model == "gpt2" else _sentencepiece)(file, tokens, kinds, roles)
    names = {f"{role}_token": tokens[id] for role, id in roles.items()}
    add_bos = file.value("tokenizer.ggml.add_bos_token", bool, bos) and "bos" in roles
    if add_bos:
        sequence, name = [{"Sequence": {"id": "A", "type_id": 0}}], names["bos_token"]
        spec["post_processor"] = {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": name, "type_id": 0}}, *sequence],
            "pair": [{"SpecialToken": {"id": name, "type_id": 0}}, *sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [roles["bos"]], "tokens": [name]}},
        }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "add_bos_token": add_bos}
    config |= {"clean_up_tokenization_spaces": False}
    config |= {"chat_template": file.chat_template} if file.chat_template else {}
    return {"tokenizer.json": spec, "tokenizer_config.json": config}


def _list(file: GgufFile, key: str, kind: type, length: int | None = None) -> list:
    """Returns the list `tokenizer.ggml.<key>`. Raises DataError if it is missing, empty, or of wrong type or length."""
    key = f"tokenizer.ggml.{key}"
    values = file.value(key, list)
    if not values or not all(isinstance(value, kind) for value in values):
        raise DataError(f"{file.path}: metadata key {key} is not a list of {kind.__name__}")
    if length is not None and len(values) != length:
        raise DataError(f"{file.path}: {key} has {len(values)} entries for {length} tokens")
    return values


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int], roles: dict[str, int]) -> tuple[dict, bool]:
    """Returns (tokenizer.json, whether sequences start with BOS by default)."""
    name = file.value("tokenizer.ggml.pre", str)
    if name not in _PRE_TOKENIZERS:
        raise DataError(f"{file.path}: tokenizer.ggml.pre={name!r} is not one of {', '.join(_PRE_TOKENIZERS)}")
    pattern, splits_digits, normalizer, is_llama_3 = _PRE_TOKENIZERS[name]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    splitters = [{"type": "Digits", "individual_digits": True}] * splits_digits + [split] * bool(pattern)
    added = [id for id, kind in enumerate(kinds) if kind in _ADDED]
    vocabulary_size = len(tokens)
    while vocabulary_size and kinds[vocabulary_size - 1] in _ADDED:
        vocabulary_size -= 1  # kept out of the BPE vocabulary, where ignore_merges would match them in text
    return {
        "version": "1.0",
        "added_tokens": [added_token(id, tokens[id], kinds[id] != _USER_DEFINED) for id in added],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splitters, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens[:vocabulary_size])},
            "merges": [merge.split(" ", 1) for merge in _list(file, "merges", str)],
            "ignore_merges": is_llama_3,
        },
    }, is_llama_3  # fmt: skip


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int], roles: dict[str, int]) -> tuple[dict, bool]:
    """Returns the same for a SentencePiece BPE tokenizer (LLaMA)."""
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if file.metadata.get(f"tokenizer.ggml.{key}"):
            raise DataError(f"{file.path}: tokenizer.ggml.{key}: text is normalised, which is not supported")
    scores = _list(file, "scores", float)[: len(tokens)]  # the list also covers padding
    if len(scores) < len(tokens):
        raise DataError(f"{file.path}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    dummy_prefix = file.value("tokenizer.ggml.add_space_prefix", bool, True)
    pieces = list(zip(tokens, scores, kinds, strict=True))
    return sentencepiece_spec(pieces, tokens[roles.get("unk", 0)], dummy_prefix), True
