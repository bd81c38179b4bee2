"""Tokenizers: SentencePiece models, Hugging Face folders and our own, behind one class.

Two rules differ from the libraries. Text never becomes a special token, whatever a user types: `</s>` in text is `</`,
`s`, `>`. And the space that SentencePiece puts before a text (the dummy prefix) is added only on request, because text
arrives in segments. Code from a tokenizer's folder is never run.

Every source is converted to the form of a tokenizer.json (`spec` below), and `build_tokenizer` makes it a `Tokenizer`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from llava_jax.errors import ConfigError, DataError
from llava_jax.text.sentencepiece import added_token, read_sentencepiece

ROLES = ("unk", "bos", "eos", "pad")
TRAINED_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with what the rest of the project needs. Picklable, for data workers."""

    backend: tokenizers.Tokenizer = field(repr=False)  # its repr is the whole vocabulary
    special: Mapping[str, int]  # name -> id of every special token
    bos_id: int | None
    eos_id: int
    pad_id: int  # the pad token, else <unk> as in LLaVA, else </s>
    unk_id: int | None
    vocab_size: int  # largest id + 1
    add_bos: bool  # a sequence begins with bos_id
    dummy_prefix: bool  # a text begins with a space (SentencePiece)
    legacy: bool  # so does text after a special token (LLaMA, Vicuna before v1.5)
    chat_template: str = field(default="", repr=False)  # Jinja text from tokenizer_config.json or a GGUF

    def __post_init__(self):
        self.backend.encode_special_tokens = True  # i.e. as ordinary text

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self.__post_init__()  # a pickled backend loses the switch, and text would become special ids

    def encode(self, text: str, dummy_prefix: bool = False) -> list[int]:
        """Ids of ordinary text, without BOS and special ids. Empty text has no ids.

            encode("USER", dummy_prefix=True) == [3148, 1001] and encode("USER") == [11889]      # LLaMA

        Raises DataError for text that is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error
        if dummy_prefix and self.dummy_prefix and text:
            text = " " + text
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids. Every space is kept, also a dummy prefix: strip the text before showing it.

        skip_special: drops special tokens and image placeholders (negative ids); otherwise they are written by name and
        as `<image>`. Ids beyond the vocabulary (padded embeddings) are always dropped.
        """
        names = {id: name for name, id in self.special.items()}
        text = ""
        for is_special, run in groupby((int(id) for id in ids), lambda id: id < 0 or id in names):
            if not is_special:
                text += self.backend.decode(list(run))
            elif not skip_special:
                text += "".join(names.get(id, "<image>") for id in run)
        return text


def load_tokenizer(path: str | Path, legacy: bool | None = None) -> Tokenizer:
    """Loads a SentencePiece model, a tokenizer.json, or a folder that holds either; the content decides which it is.

    If a folder has both, tokenizer.json is read. tokenizer_config.json and special_tokens_map.json beside the file name
    the special tokens. legacy: overrides what the files say about text after special tokens. Files that say nothing are
    legacy, as in transformers: LLaMA-1 and Vicuna before v1.5 are, Vicuna v1.5 is not.

    Raises DataError, naming the file, for a file that is missing, damaged, of an unsupported kind (not BPE) or without
    an end-of-sequence token.
    """
    file = _tokenizer_file(Path(path))
    config = _read_json(file.parent / "special_tokens_map.json") | _read_json(file.parent / "tokenizer_config.json")
    for name, id in _read_json(file.parent / "added_tokens.json").items():
        config.setdefault("added_tokens_decoder", {}).setdefault(str(id), {"content": name, "special": True})
    try:
        content = file.read_bytes()
        if not content.strip():
            raise DataError("is empty, not a SentencePiece model or tokenizer.json; is the download complete?")
        if content.lstrip()[:1] == b"{":
            spec = json.loads(content)
            named = {} if config.get("eos_token") else dict(zip(ROLES, TRAINED_SPECIALS, strict=True))
        else:
            spec, named = read_sentencepiece(content)
            config.setdefault("add_bos_token", True)
        return build_tokenizer(spec, config, named, legacy)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(f"{file}: not a readable tokenizer ({type(error).__name__}: {error})") from error


def _tokenizer_file(path: Path) -> Path:
    candidates = [path / "tokenizer.json", path / "tokenizer.model"] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    raise DataError(
        f"{path}: no tokenizer found; pass a SentencePiece model, a tokenizer.json, a GGUF or a folder with one"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def build_tokenizer(
    spec: dict[str, Any], config: Mapping[str, Any], named: Mapping[str, str], legacy: bool | None = None
) -> Tokenizer:
    """Builds a tokenizer from tokenizer.json (`spec`, modified in place) and tokenizer_config.json (`config`).

    named: role -> name of the special tokens that `config` does not name. legacy: as in `load_tokenizer`. Raises
    DataError for unsupported contents, and whatever the tokenizers library raises for a spec that it cannot read.
    """
    named = {**named, **{role: _token_text(config[f"{role}_token"]) for role in ROLES if config.get(f"{role}_token")}}
    config = {key: value for key, value in config.items() if value is not None}
    model = spec["model"]
    if "merges" not in model:
        raise DataError(f"a {model.get('type')} model; only BPE tokenizers are supported")
    added = {token["id"]: token for token in spec.get("added_tokens") or ()}
    for id, token in config.get("added_tokens_decoder", {}).items():
        added.setdefault(int(id), added_token(int(id), _token_text(token), token.get("special", True)))
    for name in named.values():
        if name in model["vocab"]:
            id = model["vocab"][name]
            added.setdefault(id, added_token(id, name))
    additional = {_token_text(token) for token in config.get("additional_special_tokens") or ()}
    for token in added.values():
        reserved = re.fullmatch(r"<\|.*\|>|<image>", token["content"])
        token["special"] = bool(token["special"] or reserved or token["content"] in {*named.values(), *additional})
    special = {token["content"]: id for id, token in added.items() if token["special"]}
    if named.get("eos") not in special:
        raise DataError("has no end-of-sequence token; name it as eos_token in tokenizer_config.json beside the file")

    # A merge into a special token would let text become it: `<` + `s>` in some converted LLaMA files.
    forbidden = set(special) | {f"<0x{byte:02X}>" for byte in range(256)} & set(model["vocab"])
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [pair for pair in pairs if "".join(pair) not in forbidden]
    model["ignore_merges"] = bool(model.get("ignore_merges")) and not forbidden & set(model["vocab"])
    schemes: list[str] = []
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        spec[part] = _without_prefix(spec.get(part), schemes)
    spec |= {"added_tokens": [added[id] for id in sorted(added)], "truncation": None, "padding": None}

    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for name, id in special.items():
        if backend.token_to_id(name) != id:
            raise DataError(f"the special token {name!r} should have id {id}, but is {backend.token_to_id(name)}")
    ids = {role: special.get(named.get(role)) for role in ROLES}
    begins_with_bos = backend.encode("a").ids[:1] == [ids["bos"]]
    return Tokenizer(
        backend=backend,
        special=special,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=next(ids[role] for role in ("pad", "unk", "eos") if ids[role] is not None),
        unk_id=ids["unk"],
        vocab_size=max(backend.get_vocab().values()) + 1,
        add_bos=ids["bos"] is not None and bool(config.get("add_bos_token", begins_with_bos)),
        dummy_prefix=bool(schemes),
        legacy=bool(config.get("legacy", "first" not in schemes)) if legacy is None else legacy,
        chat_template=str(config.get("chat_template", "")),
    )


def _without_prefix(node: dict[str, Any] | None, schemes: list[str]) -> dict[str, Any] | None:
    """A part of a spec without what adds or removes the dummy prefix; appends to `schemes` when it would be added."""
    if node is None:
        return None
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in node:
            children = [_without_prefix(child, schemes) for child in node[key]]
            return {**node, key: [child for child in children if child is not None]}
    match node:
        case {"type": "Prepend"}:
            schemes.append("always")
            return None
        case {"type": "Metaspace"}:
            scheme = node.pop("prepend_scheme", "always" if node.get("add_prefix_space", True) else "never")
            schemes += [scheme] * (scheme != "never")
            node.pop("add_prefix_space", None)
            return {**node, "prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return {**node, "add_prefix_space": False}
        case {"type": "Strip", "content": " "}:
            return None
    return node


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, path: str | Path, extra_specials: Sequence[str] = ()
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer, writes the folder `path` (tokenizer.json, tokenizer_config.json), loads it.

    Ids 0..3 are `<unk> <s> </s> <pad>`; extra_specials and the 256 bytes follow, so any Unicode text is encoded and
    decoded without loss. The same texts give the same files. Sequences begin with `<s>`.

    Raises ConfigError where vocab_size leaves no room for specials and bytes.
    """
    specials = [*TRAINED_SPECIALS, *extra_specials]
    minimum = len(specials) + 256
    if vocab_size < minimum:
        raise ConfigError(f"vocab_size={vocab_size} is too small; the specials and 256 bytes alone need {minimum}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    unk, bos, eos, pad = TRAINED_SPECIALS
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": pad},
        "additional_special_tokens": list(extra_specials),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load_tokenizer(folder)
