"""Writes a tokenizer as Hugging Face's tokenizer.json and tokenizer_config.json."""

import json

from llava_jax.errors import DataError
from llava_jax.text.sentencepiece import added_token
from llava_jax.text.spec import set_scheme
from llava_jax.text.templates import IMAGE_MARKER
from llava_jax.text.tokenizer import Tokenizer


def json_text(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def tokenizer_spec(tokenizer: Tokenizer, image_token_id: int | None = None) -> dict:
    """Its tokenizer.json, with what `build_tokenizer` removed put back: the space before a text, BOS before a sequence.
    image_token_id: adds `<image>` with this id; raises DataError if the id is that of another token."""
    spec = json.loads((tokenizer.starting or tokenizer.backend).to_str())
    # Also after `<image>`, as in `encode_segments`. That adds none after `</s>` in tokenizers that are not legacy, for
    # which there is no scheme: in transformers, later rounds of a chat then begin with one extra space.
    set_scheme(spec, "always")
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    if added.get(image_token_id, IMAGE_MARKER) != IMAGE_MARKER or image_token_id in spec["model"]["vocab"].values():
        raise DataError(f"the tokenizer has {tokenizer.backend.id_to_token(image_token_id)!r} where <image> should be")
    if image_token_id is not None and image_token_id not in added:
        spec["added_tokens"].append(added_token(image_token_id, IMAGE_MARKER))
    if tokenizer.add_bos:
        name = next(name for name, id in tokenizer.special.items() if id == tokenizer.bos_id)
        sequence = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        spec["post_processor"] = dict(
            type="TemplateProcessing", single=sequence, pair=[*sequence, {"Sequence": {"id": "B", "type_id": 0}}],
            special_tokens={name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
        )  # fmt: skip
    return spec


def tokenizer_config(tokenizer: Tokenizer, max_length: int) -> dict:
    """Its tokenizer_config.json. `legacy` is for `load_tokenizer`; transformers ignores it for this class."""
    ids = dict(
        unk_token=tokenizer.unk_id, bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id, pad_token=tokenizer.pad_id
    )
    names = {role: name for role, id in ids.items() for name, i in tokenizer.special.items() if i == id}
    return names | dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=max_length, padding_side="left",
        clean_up_tokenization_spaces=False, legacy=tokenizer.legacy,
    )  # fmt: skip
