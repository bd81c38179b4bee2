"""Tokenizers: SentencePiece models, Hugging Face folders and our own, behind one class.

Two rules differ from the libraries. Text never becomes a special token, whatever a user types: `</s>` in text is `</`,
`s`, `>`. And the space that many tokenizers put before a text (the dummy prefix) is added only on request, because text
arrives in segments. All else equals the fast tokenizers of transformers. Code from a tokenizer's folder is never run.

Every source is converted to the form of a tokenizer.json (`spec` below), and `build_tokenizer` makes it a `Tokenizer`.
"""

import functools
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
from llava_jax.output.file_kind import wrong_content
from llava_jax.output.files import local_path, read_object
from llava_jax.output.json_text import parse_json
from llava_jax.text.sentencepiece import added_token, read_sentencepiece
from llava_jax.text.spec import apply_class_flags, boolean, check_spec, class_name, set_scheme, without_prefix

ROLES = ("unk", "bos", "eos", "pad")
TRAINED_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with what the rest of the project needs. Picklable, for data workers."""

    backend: tokenizers.Tokenizer = field(repr=False)  # of text inside a row; its repr is the whole vocabulary
    special: Mapping[str, int]  # name -> id of every special token
    bos_id: int | None
    eos_id: int
    pad_id: int  # the pad token, else <unk> as in LLaVA, else </s>
    unk_id: int | None
    vocab_size: int  # largest id + 1
    add_bos: bool  # a sequence begins with bos_id
    starting: tokenizers.Tokenizer | None = field(repr=False)  # of a text's start; None: it adds no dummy prefix
    legacy: bool  # text after a special token has the dummy prefix too (LLaMA, Vicuna before v1.5)
    strips: Mapping[int, tuple[bool, bool]]  # special ids that remove the white space (before, after) them
    chat_template: Any = field(default="", repr=False)  # as in tokenizer_config.json or a GGUF: Jinja text, or a list
    end_ids: tuple[int, ...] = ()  # ids that end an answer besides eos_id, of generation_config.json

    def __post_init__(self):
        for backend in filter(None, (self.backend, self.starting)):
            backend.encode_special_tokens = True  # i.e. as ordinary text

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self.__post_init__()  # a pickled backend loses the switch, and text would become special ids

    @functools.cached_property
    def _added_ids(self) -> frozenset[int]:
        """The added tokens that text may become."""
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if not token.special)

    @property
    def dummy_prefix(self) -> bool:
        """Whether a text begins with a space: SentencePiece, and byte-level ones with add_prefix_space."""
        return self.starting is not None

    def encode(self, text: str, dummy_prefix: bool = False) -> list[int]:
        """Ids of ordinary text, without BOS and special ids. Empty text has no ids.

            encode("USER", dummy_prefix=True) == [3148, 1001] and encode("USER") == [11889]      # LLaMA

        Raises DataError for text that is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error
        if dummy_prefix and self.starting:
            return self.starting.encode(text, add_special_tokens=False).ids
        encoding = self.backend.encode(text, add_special_tokens=False)
        if self.starting and self.legacy and not self._added_ids.isdisjoint(encoding.ids):
            # What follows an added token is the start of a text, as after a special one.
            first = next(i for i, id in enumerate(encoding.ids) if id in self._added_ids)
            return encoding.ids[: first + 1] + self.encode(text[encoding.offsets[first][1] :], dummy_prefix=True)
        return encoding.ids

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
    the special tokens. legacy: overrides what the files say about text after special tokens. SentencePiece models that
    say nothing are legacy: LLaMA-1 and Vicuna before v1.5 are, Vicuna v1.5 is not.

    Raises DataError, naming the file, for a file that is missing, damaged, of an unsupported kind (not BPE), with a
    setting that cannot be followed, or without an end-of-sequence token. Raises ConfigError for a URL.
    """
    file = _tokenizer_file(local_path(path, "tokenizer"))
    config = _read_json(file.parent / "special_tokens_map.json") | _read_json(file.parent / "tokenizer_config.json")
    for name, id in _read_json(file.parent / "added_tokens.json").items():
        config.setdefault("added_tokens_decoder", {}).setdefault(str(id), {"content": name, "special": True})
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    if kind := wrong_content(content[:1024]):
        raise DataError(f"{file} {kind}")
    try:
        if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
            spec = check_spec(parse_json(content))
            named = {} if config.get("eos_token") else dict(zip(ROLES, TRAINED_SPECIALS, strict=True))
        else:
            spec, named = read_sentencepiece(content)
            given = {key: value for key, value in config.items() if value is not None}
            config = {"add_bos_token": True, **given, "tokenizer_class": "LlamaTokenizer"}
        return build_tokenizer(spec, config, named, legacy)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(f"{file}: not a readable tokenizer ({error}). Is it complete?") from error


def _tokenizer_file(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder. A tokenizer is not downloaded: pass where its files are, or get "
            "them with `hf download NAME --local-dir FOLDER`"
        )
    candidates = [path / "tokenizer.json", path / "tokenizer.model"] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    hint = ""
    if (path / "merges.txt").is_file():
        hint = ". It has vocab.json and merges.txt, an older form: transformers' AutoTokenizer writes tokenizer.json"
    raise DataError(
        f"{path}: no tokenizer found (tokenizer.json or tokenizer.model); pass a SentencePiece model, a "
        f"tokenizer.json, a GGUF or a folder with one{hint}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, "the special tokens") if path.is_file() else {}


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise DataError(f"a token is {str(token)[:60]!r}, not a text or an object with its content")
    return text


def build_tokenizer(
    spec: dict[str, Any], config: Mapping[str, Any], named: Mapping[str, str], legacy: bool | None = None
) -> Tokenizer:
    """Builds a tokenizer from tokenizer.json (`spec`, modified in place) and tokenizer_config.json (`config`).

    named: role -> name of the special tokens that `config` does not name. legacy: as in `load_tokenizer`. Raises
    DataError for unsupported contents, and whatever the tokenizers library raises for a spec that it cannot read.
    """
    named = {**named, **{role: _token_text(config[f"{role}_token"]) for role in ROLES if config.get(f"{role}_token")}}
    config = {key: value for key, value in config.items() if value is not None}
    added = _added_tokens(spec, config, named)
    special = {token["content"]: id for id, token in added.items() if token["special"]}
    if named.get("eos") not in special:
        raise DataError("has no end-of-sequence token; name it as eos_token in tokenizer_config.json beside the file")
    # A merge into a special token would let text become it: `<` + `s>` in some converted LLaMA files.
    model = spec["model"]
    forbidden = set(special) | {f"<0x{byte:02X}>" for byte in range(256)} & set(model["vocab"])
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [pair for pair in pairs if "".join(pair) not in forbidden]
    apply_class_flags(spec, config)
    spec |= {"added_tokens": [added[id] for id in sorted(added)], "truncation": None, "padding": None}
    plain, schemes = without_prefix(spec)

    backend = tokenizers.Tokenizer.from_str(json.dumps(plain))
    for id, name in ((token["id"], token["content"]) for token in plain["added_tokens"]):
        if backend.token_to_id(name) != id:
            raise DataError(f"the added token {name!r} should have id {id}, but is {backend.token_to_id(name)}")
    if model.get("ignore_merges") and forbidden & set(model["vocab"]):
        _check_text_stays_ordinary(backend, forbidden)
    ids = {role: special.get(named.get(role)) for role in ROLES}
    if legacy is None:
        # transformers' own generic class follows the file. Ours is written as PreTrainedTokenizerFast, with the flag.
        flag = None if class_name(config) == "TokenizersBackend" else boolean(config, "legacy")
        legacy = "first" not in schemes if flag is None else flag
    set_scheme(spec, "always" if legacy else "first")
    return Tokenizer(
        backend=backend,
        special=special,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=next(ids[role] for role in ("pad", "unk", "eos") if ids[role] is not None),
        unk_id=ids["unk"],
        vocab_size=max(backend.get_vocab().values()) + 1,
        add_bos=_adds_bos(backend, ids, config),
        starting=tokenizers.Tokenizer.from_str(json.dumps(spec)) if schemes else None,
        legacy=legacy,
        strips={id: flags for id in special.values() if any(flags := (added[id]["lstrip"], added[id]["rstrip"]))},
        chat_template=config.get("chat_template", ""),
    )


def _added_tokens(spec: dict[str, Any], config: Mapping[str, Any], named: Mapping[str, str]) -> dict[int, dict]:
    """The added tokens of both files by id. As in transformers, the flags in tokenizer_config.json win."""
    vocab = spec["model"]["vocab"]
    added = {token["id"]: added_token(**token) for token in spec.get("added_tokens") or ()}
    for key, token in config.get("added_tokens_decoder", {}).items():
        id, text = int(key), _token_text(token)
        before = added.get(id, added_token(id, text))
        if before["content"] != text:
            raise DataError(
                f"token {id} is {before['content']!r} here and {text!r} in tokenizer_config.json; is that file of "
                "another model?"
            )
        flags = dict(token) if isinstance(token, Mapping) else {}
        flags["special"] = before["special"] if id in added else flags.get("special", True)
        added[id] = added_token(**{**before, **flags})
    for name in named.values():
        if name in vocab:
            added.setdefault(vocab[name], added_token(vocab[name], name))
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    additional = {_token_text(token) for token in (listed.values() if isinstance(listed, Mapping) else listed)}
    for token in added.values():
        reserved = re.fullmatch(r"<\|.*\|>|<image>", token["content"])
        token["special"] = bool(token["special"] or reserved or token["content"] in {*named.values(), *additional})
    return added


def _check_text_stays_ordinary(backend: tokenizers.Tokenizer, forbidden: Iterable[str]) -> None:
    """Raises DataError if a whole word that needs no merges (ignore_merges) becomes one of the forbidden tokens."""
    backend.encode_special_tokens = True
    ids = {backend.token_to_id(name) for name in forbidden}
    for name in forbidden:
        if not ids.isdisjoint(backend.encode(f"{name} {name}", add_special_tokens=False).ids):
            raise DataError(f"model.ignore_merges lets the text {name!r} become that token, which is not supported")


def _adds_bos(backend: tokenizers.Tokenizer, ids: Mapping[str, int | None], config: Mapping[str, Any]) -> bool:
    """Whether a sequence begins with BOS: as the post-processor says, or for LLaMA's class as the flag says."""
    encoding = backend.encode("a")
    adds = encoding.special_tokens_mask[:1] == [1] and encoding.ids[0] == ids["bos"]
    extra = [id for id, is_extra in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if is_extra][adds:]
    if extra not in ([], [ids["eos"]]) or (extra and encoding.special_tokens_mask[0] and not adds):
        names = [backend.id_to_token(id) for id in [*[ids["bos"]] * adds, *extra]]
        raise DataError(f"the post_processor adds {names} to a text; only one beginning and end of sequence can be")
    flag = boolean(config, "add_bos_token")
    if flag is None or ids["bos"] is None:
        return adds
    if flag != adds and class_name(config) != "LlamaTokenizer":
        raise DataError(
            f"tokenizer_config.json has add_bos_token={str(flag).lower()}, but the post_processor of tokenizer.json "
            f"{'adds' if adds else 'does not add'} it, which is what transformers follows. Make them agree"
        )
    return flag


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
