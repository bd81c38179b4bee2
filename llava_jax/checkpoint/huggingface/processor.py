"""Writes the files of transformers' `LlavaProcessor`: image processor, tokenizer with `<image>`, chat template.

`AutoProcessor.from_pretrained` loads them; its token ids and pixels equal those in our training.
"""

import json

import numpy as np

from llava_jax.config.architectures import MEAN, STD, ModelConfig, VisionConfig
from llava_jax.errors import DataError
from llava_jax.text.encode import IMAGE_ENDS, image_ends
from llava_jax.text.templates import IMAGE_MARKER, Segment, find_template
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.text.tokenizer_json import json_text, tokenizer_config, tokenizer_spec

WRAPPED = IMAGE_MARKER.join(IMAGE_ENDS)  # an image in a chat template with `wraps_images`


def processor_files(
    config: ModelConfig, tokenizer: Tokenizer, image_token_id: int, template: str, aspect: str, wraps_images: bool
) -> dict[str, str]:
    """Returns the processor's files as name -> text: preprocessor_config.json, processor_config.json, the tokenizer's
    files, chat_template.jinja and generation_config.json. aspect: crop | pad, as in training.

    Raises DataError for a template without a chat form, if image_token_id is another token, and as `image_ends`.
    """
    if wraps_images:
        image_ends(tokenizer)  # raises unless both are special tokens: as plain text they would get other ids
    vision = config.vision
    has_cls = vision.select_feature == "cls_patch"
    files = {
        "preprocessor_config.json": _image_processor(vision, aspect),
        "processor_config.json": dict(
            processor_class="LlavaProcessor",
            patch_size=vision.patch_size,
            vision_feature_select_strategy="full" if has_cls else "default",
            image_token=IMAGE_MARKER,
            num_additional_image_tokens=1,  # CLS, which the strategy `default` drops
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


def _image_processor(vision: VisionConfig, aspect: str) -> dict:
    size = vision.image_size
    shared = dict(
        processor_class="LlavaProcessor", do_convert_rgb=True, do_resize=True, do_rescale=True, do_normalize=True,
        image_mean=np.float32(MEAN).tolist(), image_std=np.float32(STD).tolist(), resample=3, rescale_factor=1 / 255,
        size=dict(shortest_edge=size), crop_size=dict(height=size, width=size), do_center_crop=True,
    )  # fmt: skip
    if aspect == "pad":
        return shared | dict(image_processor_type="LlavaImageProcessor", do_pad=True)
    return shared | dict(image_processor_type="CLIPImageProcessor")


def chat_template(name: str, wraps_images: bool = False) -> str:
    """Returns the conversation template `name` as a Jinja chat template, generated from the table used in training.

    A message's content is a string, or a list of {"type": "text", "text": ...} and {"type": "image"}; an image becomes
    its token and a newline. wraps_images: see `wrap_images`. Raises DataError for `plain`, which is not for chats.
    """
    template = find_template(name)
    if template.text_is_dropped:
        raise DataError(f"template {name!r} is not for chats; choose another, e.g. vicuna_v1")
    layout = template.prompt or template.train
    image = (WRAPPED if wraps_images else IMAGE_MARKER) + "\n"
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{{{{ {json.dumps(image)} }}}}{{% else %}}{{{{ c['text'] }}}}"
        "{% endif %}{% endfor %}{% endif %}"
    )
    return (
        _literal(layout.header)
        + "{% for m in messages %}{% if m['role'] == 'user' %}{% if not loop.first %}"
        + _literal(layout.between)
        + "{% endif %}" + content + _literal(layout.cue)
        + "{% else %}" + _literal(layout.lead) + content + _literal(layout.tail)
        + "{% endif %}{% endfor %}"
    )  # fmt: skip


def _literal(segments: tuple[Segment, ...]) -> str:
    text = "".join(segment.text for segment in segments)
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
