"""What a tokenizer.json must hold, and the space that many tokenizers put before a text: finds and removes it.

The rules of that space are those of the tokenizers library. `Prepend` (a normalizer) always adds its text. `Metaspace`
and `ByteLevel` (pre-tokenizers) add a space unless there is one: `always` after every added token too, `first` only
where the whole text begins.
"""

import re
from collections.abc import Mapping
from typing import Any

from llava_jax.errors import DataError

LISTS = "normalizers", "pretokenizers", "decoders"
# Classes of transformers 5 that build ByteLevel themselves, with the flag of tokenizer_config.json (default: false).
BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")


def check_spec(spec: Any) -> dict[str, Any]:
    """Returns the content of a tokenizer.json. Raises DataError if it is that of another file, no BPE model, or has
    entries of the wrong type or a setting that encodes at random."""
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        keys = ", ".join(list(spec)[:4]) if isinstance(spec, dict) else type(spec).__name__
        raise DataError(f"is JSON ({keys}), but no tokenizer.json: it has no model. Is it another file of the folder?")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise DataError(f"a {kind} model; only BPE tokenizers are supported")
    for key, of, item in (("vocab", dict, int), ("merges", list, str | list)):
        values = model.get(key)
        entries = values.values() if isinstance(values, dict) else values
        if not isinstance(values, of) or not all(isinstance(entry, item) for entry in entries):
            raise DataError(f"its model.{key} is missing or not a {of.__name__} as in a BPE model; the file is damaged")
    for token in spec.get("added_tokens") or ():
        if not isinstance(token, dict) or not isinstance(token.get("id"), int) or "content" not in token:
            raise DataError(f"the entry {str(token)[:60]} of added_tokens has no id and content; the file is damaged")
    if model.get("dropout"):
        raise DataError(f"model.dropout={model['dropout']} encodes a text differently each time; set it to null")
    return spec


def apply_class_flags(spec: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Changes `spec` (tokenizer.json) where transformers lets tokenizer_config.json override it: `add_prefix_space` of
    the classes that honour it. PreTrainedTokenizerFast and TokenizersBackend do not. Raises DataError if the spec has
    nothing that could add the space."""
    flag, name = boolean(config, "add_prefix_space"), class_name(config)
    byte_levels = [step for step in steps(spec.get("pre_tokenizer")) if step.get("type") == "ByteLevel"]
    if name in BYTE_LEVEL_CLASSES:
        for step in byte_levels:
            step["add_prefix_space"] = bool(flag)
    elif name == "LlamaTokenizer" and flag is not None and not byte_levels:
        plain, schemes = without_prefix(spec)
        if flag and not schemes:
            raise DataError(
                "tokenizer_config.json has add_prefix_space=true, but tokenizer.json puts no space before a text. Set "
                "it to what the model was trained with"
            )
        if not flag:
            spec |= plain


def set_scheme(spec: Mapping[str, Any], scheme: str) -> None:
    """Changes after which tokens a Metaspace that adds a space does so: "always" or "first"."""
    for step in steps(spec.get("pre_tokenizer")) + steps(spec.get("decoder")):
        if step.get("prepend_scheme", "never") != "never":
            step["prepend_scheme"] = scheme


def class_name(config: Mapping[str, Any]) -> str:
    """`tokenizer_class` without "Fast": transformers 5 has one class of each kind."""
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def boolean(config: Mapping[str, Any], key: str) -> bool | None:
    """Raises DataError for a value that is not true, false or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{key}={value!r} in tokenizer_config.json is not true or false")
    return value


def without_prefix(spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns (`spec` without what adds a space before a text or removes it from decoded text, its schemes).

    A scheme is "always" or "first"; none: no space is added. Raises DataError for steps that treat the edges of a text
    in a way that cannot be separated from the rest, because text is encoded in pieces.
    """
    schemes: list[str] = []
    parts = {}
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        kept, before = [], []
        for step in steps(spec.get(part)):
            new = _REMOVERS[part](step, before, schemes)
            kept += [new] if new else []
            before.append(step["type"])
        parts[part] = {"type": "Sequence", _REMOVERS_KEY[part]: kept} if kept else None
    prefix = "".join(step["prepend"] for step in steps(spec.get("normalizer")) if step["type"] == "Prepend")
    if prefix:
        # The library prepends to the name of a normalized token too, and then finds it only after a space.
        tokens = spec.get("added_tokens") or ()
        parts["added_tokens"] = [
            {**token, "content": prefix + token["content"]} if token["normalized"] and not token["special"] else token
            for token in tokens
        ]
    return {**spec, **parts}, schemes


def steps(node: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, nested Sequences flattened."""
    if not node:
        return []
    children = next((node[key] for key in LISTS if key in node), None)
    return [node] if children is None else [step for child in children for step in steps(child)]


def _plain_normalizer(step: dict, before: list[str], schemes: list[str]) -> dict | None:
    pattern = str(step.get("pattern", {}).get("Regex", "")) if step["type"] == "Replace" else ""
    if step["type"] == "Prepend":
        schemes.append("always")
        return None
    if re.match(r"\\A|\^", pattern) and "|" not in pattern and not re.search(r"\\[zZ]|(?<!\\)\$", pattern):
        return None  # `\A▁` -> `▁▁`: transformers writes it beside a Metaspace, so that it always adds one
    if step["type"] == "Strip" or re.search(r"\\[AzZ]|(?<![\[\\])\^|(?<!\\)\$", pattern):
        name = f"{step['type']} {pattern}".rstrip()
        raise DataError(f"the normalizer {name} changes the edges of a text; unsupported, as text is encoded in pieces")
    return step


def _plain_pre_tokenizer(step: dict, before: list[str], schemes: list[str]) -> dict | None:
    match step["type"]:
        case "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            plain = {key: value for key, value in step.items() if key != "add_prefix_space"}
            plain["prepend_scheme"] = "never"
        case "ByteLevel":
            scheme = "always" if step.get("add_prefix_space", True) else "never"
            plain = {**step, "add_prefix_space": False}
        case _:
            return step
    if scheme == "always" and before:
        raise DataError(
            f"the pre-tokenizer {step['type']} after {before[-1]} puts a space before every piece of a text, which is "
            "not supported"
        )
    schemes += [scheme] * (scheme != "never")
    return plain


def _plain_decoder(step: dict, before: list[str], schemes: list[str]) -> dict | None:
    match step:
        case {"type": "Metaspace"}:
            return {**{k: v for k, v in step.items() if k != "add_prefix_space"}, "prepend_scheme": "never"}
        case {"type": "Strip", "content": " "} if "Fuse" in before:  # one text by now; before Fuse it strips each token
            return None
    return step


_REMOVERS = {"normalizer": _plain_normalizer, "pre_tokenizer": _plain_pre_tokenizer, "decoder": _plain_decoder}
_REMOVERS_KEY = dict(zip(_REMOVERS, LISTS, strict=True))
