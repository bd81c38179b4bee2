"""What transformers needs beside the weights: image processor, tokenizer with an `<image>` token, chat template.

`AutoProcessor.from_pretrained` puts them together to a `LlavaProcessor`, whose ids and pixels are those we train on.
"""

import json

from llava_jax.config.architectures import ModelConfig, VisionConfig
from llava_jax.errors import DataError
from llava_jax.models.clip import MEAN, STD
from llava_jax.text.encode import IMAGE_ENDS, image_ends
from llava_jax.text.sentencepiece import SPACE, added_token
from llava_jax.text.templates import IMAGE_MARKER, Segment, find_template
from llava_jax.text.tokenizer import Tokenizer

WRAPPED = IMAGE_MARKER.join(IMAGE_ENDS)  # an image in a chat template, where `wrap_images` is due


def processor_files(
    config: ModelConfig, tokenizer: Tokenizer, image_token_id: int, template: str, aspect: str, wraps_images: bool
) -> dict[str, str]:
    """Name -> text of preprocessor_config.json, processor_config.json, the tokenizer's files, chat_template.jinja and
    generation_config.json. aspect: crop | pad, as in training.

    Raises DataError for a template that has no chat form, for an image token that is another word, and as `image_ends`.
    """
    if wraps_images:
        image_ends(tokenizer)  # as text in the chat template they would be other ids
    vision = config.vision
    whole = vision.select_feature == "cls_patch"
    files = {
        "preprocessor_config.json": _image_processor(vision, aspect),
        "processor_config.json": dict(
            processor_class="LlavaProcessor",
            patch_size=vision.patch_size,
            vision_feature_select_strategy="full" if whole else "default",
            image_token=IMAGE_MARKER,
            num_additional_image_tokens=1,  # CLS; the strategy `default` takes it off again
        ),
        "tokenizer.json": tokenizer_spec(tokenizer, image_token_id),
        "tokenizer_config.json": tokenizer_config(tokenizer, config.llm.max_positions)
        | dict(processor_class="LlavaProcessor", extra_special_tokens={"image_token": IMAGE_MARKER}),
        "generation_config.json": dict(
            bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
        ),
    }
    return {name: json_text(content) for name, content in files.items()} | {
        "chat_template.jinja": chat_template(template, wraps_images)
    }


def json_text(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _image_processor(vision: VisionConfig, aspect: str) -> dict:
    size = vision.image_size
    shared = dict(
        processor_class="LlavaProcessor", do_convert_rgb=True, do_resize=True, do_rescale=True, do_normalize=True,
        image_mean=MEAN.tolist(), image_std=STD.tolist(), resample=3, rescale_factor=1 / 255,
        size=dict(shortest_edge=size), crop_size=dict(height=size, width=size), do_center_crop=True,
    )  # fmt: skip
    if aspect == "pad":
        return shared | dict(image_processor_type="LlavaImageProcessor", do_pad=True)
    return shared | dict(image_processor_type="CLIPImageProcessor")


def tokenizer_spec(tokenizer: Tokenizer, image_token_id: int | None = None) -> dict:
    """Its tokenizer.json with what we take off put back: the space before a text, BOS before a sequence. With an id,
    `<image>` is a word of it."""
    spec = json.loads(tokenizer.backend.to_str())
    taken = {token["id"]: token["content"] for token in spec["added_tokens"]}
    if taken.get(image_token_id, IMAGE_MARKER) != IMAGE_MARKER or image_token_id in spec["model"]["vocab"].values():
        raise DataError(f"the tokenizer has {tokenizer.backend.id_to_token(image_token_id)!r} where <image> should be")
    if image_token_id is not None and image_token_id not in taken:
        spec["added_tokens"].append(added_token(image_token_id, IMAGE_MARKER))
    if tokenizer.dummy_prefix:
        # Also after `<image>`, where ours puts it too. Ours puts none after `</s>` in tokenizers that are not legacy,
        # which no normalizer can say: later rounds of a chat then begin with one space more.
        first = {"type": "Prepend", "prepend": SPACE}
        spec["normalizer"] = _sequence("normalizers", first, spec["normalizer"])
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}  # of every piece there is: of one, then
        spec["decoder"] = _sequence("decoders", spec["decoder"], {"type": "Fuse"}, strip)
    if tokenizer.add_bos:
        name = next(name for name, id in tokenizer.special.items() if id == tokenizer.bos_id)
        sequence = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        spec["post_processor"] = dict(
            type="TemplateProcessing", single=sequence, pair=[*sequence, {"Sequence": {"id": "B", "type_id": 0}}],
            special_tokens={name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
        )  # fmt: skip
    return spec


def _sequence(key: str, *parts: dict | None) -> dict:
    """Parts of a tokenizer.json one after the other."""
    flat = [one for part in parts if part for one in (part[key] if part["type"] == "Sequence" else [part])]
    return {"type": "Sequence", key: flat}


def tokenizer_config(tokenizer: Tokenizer, longest: int) -> dict:
    """Its tokenizer_config.json; `legacy` is for `load_tokenizer`, transformers does not know it for such a class."""
    ids = dict(
        unk_token=tokenizer.unk_id, bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id, pad_token=tokenizer.pad_id
    )
    names = {role: name for role, id in ids.items() for name, own in tokenizer.special.items() if own == id}
    return names | dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=longest, padding_side="left",
        clean_up_tokenization_spaces=False, legacy=tokenizer.legacy,
    )  # fmt: skip


def chat_template(name: str, wraps_images: bool = False) -> str:
    """The template `name` for transformers' chat messages (jinja), made from the same table that training uses.

    A message is a string, or a list of {"type": "text", "text": ...} and {"type": "image"}; an image is written before
    what follows it, with a newline. wraps_images: see `wrap_images`. Raises DataError for `plain`, which is no chat.
    """
    row = find_template(name)
    if row.text_is_dropped:
        raise DataError(f"template {name!r} is not for chats; choose another, e.g. vicuna_v1")
    part = row.prompt or row.train
    image = (WRAPPED if wraps_images else IMAGE_MARKER) + "\n"
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{{{{ {json.dumps(image)} }}}}{{% else %}}{{{{ c['text'] }}}}"
        "{% endif %}{% endfor %}{% endif %}"
    )
    return (
        _literal(part.header)
        + "{% for m in messages %}{% if m['role'] == 'user' %}{% if not loop.first %}"
        + _literal(part.between)
        + "{% endif %}" + content + _literal(part.cue)
        + "{% else %}" + _literal(part.lead) + content + _literal(part.tail)
        + "{% endif %}{% endfor %}"
    )  # fmt: skip


def _literal(segments: tuple[Segment, ...]) -> str:
    text = "".join(segment.text for segment in segments)
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
