"""Writes the files of transformers' `LlavaProcessor`: image processor, tokenizer with `<image>`, chat template.

`AutoProcessor.from_pretrained` loads them; its token ids and pixels equal those in our training.
"""

import json
from collections.abc import Sequence

import numpy as np

from llava_jax.config.architectures import MEAN, STD, ModelConfig, VisionConfig
from llava_jax.errors import DataError
from llava_jax.text.chat_template import WRAPPED, bos_and_eos
from llava_jax.text.encode import image_ends, stop_ids
from llava_jax.text.template_table import SYSTEM, Segment
from llava_jax.text.templates import IMAGE_MARKER, find_template
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.text.tokenizer_json import json_text, tokenizer_config, tokenizer_spec


def processor_files(
    config: ModelConfig, tokenizer: Tokenizer, image_token_id: int, template: str, aspect: str, wraps_images: bool
) -> dict[str, str]:
    """Returns the processor's files as name -> text: preprocessor_config.json, processor_config.json, the tokenizer's
    files, chat_template.jinja and generation_config.json. aspect: crop | pad, as in training.

    Raises DataError for a template without a chat form, if image_token_id is another token, and as `image_ends`.
    """
    if wraps_images:
        image_ends(tokenizer)  # raises unless both are special tokens: as plain text they would get other ids
    vision, stops = config.vision, list(stop_ids(tokenizer, template))
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
            bos_token_id=tokenizer.bos_id, eos_token_id=stops if stops[1:] else stops[0], pad_token_id=tokenizer.pad_id
        ),
    }
    return {name: json_text(content) for name, content in files.items()} | {
        "chat_template.jinja": chat_template(template, wraps_images, *bos_and_eos(tokenizer))
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


def chat_template(name: str, wraps_images: bool = False, bos: str = "<s>", eos: str = "</s>") -> str:
    """Returns the conversation template `name` as a Jinja chat template, generated from the table used in training.

    A message's content is a string, or a list of {"type": "text", "text": ...} and {"type": "image"}; an image becomes
    its token and a newline. wraps_images: see `wrap_images`. bos, eos: names of the tokenizer's own tokens. Raises
    DataError for `plain`, which is not for chats.
    """
    template = find_template(name)
    if template.text_is_dropped:
        raise DataError(f"template {name!r} is not for chats; choose another, e.g. vicuna_v1")
    layout, names = template.prompt or template.train, {"<s>": bos, "</s>": eos}
    image = (WRAPPED if wraps_images else IMAGE_MARKER) + "\n"

    def literal(segments: Sequence[Segment]) -> str:
        text = "".join(names.get(s.text, s.text) if s.kind == "special" else s.text for s in segments)
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

    def content(message: str) -> str:
        shown = (
            f"{{% if {message}['content'] is string %}}{{{{ {message}['content'] }}}}{{% else %}}"
            f"{{% for c in {message}['content'] %}}"
            f"{{% if c['type'] == 'image' %}}{{{{ {json.dumps(image)} }}}}{{% else %}}{{{{ c['text'] }}}}"
            "{% endif %}{% endfor %}{% endif %}"
        )
        return f"{{% set text %}}{shown}{{% endset %}}{{{{ text | trim }}}}" if template.strips else shown

    system, before_last = "{{ raise_exception('this template has no system text') }}", ""
    if template.system_is_last:
        system = literal(layout.header)
        is_last = "messages[0]['role'] == 'system' and loop.length - loop.index0 <= 2"
        before_last = f"{{% if {is_last} %}}{content('messages[0]')}{{{{ '\\n\\n' }}}}{{% endif %}}"
    elif layout.system:
        gap = layout.system.index(SYSTEM)
        system = literal(layout.system[:gap]) + content("m") + literal(layout.system[gap + 1 :])
    return (
        "{% for m in messages %}{% if m['role'] == 'system' %}" + system
        + "{% elif m['role'] == 'user' %}{% if loop.first %}" + literal(layout.header)
        + "{% elif loop.previtem['role'] != 'system' %}" + literal(layout.between) + "{% endif %}"
        + before_last + content("m") + literal(layout.cue)
        + "{% else %}" + literal(layout.lead) + content("m") + literal(layout.tail)
        + "{% endif %}{% endfor %}"
    )  # fmt: skip
