"""Image settings of a folder are those of transformers' processor, or refused by name."""

import json

import pytest
from transformers import CLIPImageProcessor

from llava_jax.checkpoint.huggingface.image_settings import image_settings
from llava_jax.errors import DataError
from tests.fixtures.tiny_models import uneven

VISION = uneven().vision  # 24 pixels, patches of 8
CLIP = json.loads(CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24).to_json_string())


def read(folder, image=None, processor=None, config=None):
    """`image_settings` of a folder with these files."""
    for name, content in (("preprocessor_config", image), ("processor_config", processor)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return image_settings(folder, config or {}, "here/config.json", VISION)


@pytest.mark.parametrize(
    "image, expected",
    [
        (None, "crop"), ({}, "crop"), (CLIP, "crop"),
        (CLIP | dict(image_processor_type="LlavaImageProcessor", do_pad=True), "pad"),
        (CLIP | dict(image_processor_type="LlavaImageProcessor", do_pad="false"), "crop"),
        (dict(feature_extractor_type="CLIPFeatureExtractor", size=24, crop_size=24, resample="3", do_resize=1), "crop"),
        (CLIP | dict(crop_size=[24], rescale_factor="0.00392156862745098", size={"shortest_edge": 24.0}), "crop"),
        (CLIP | dict(do_convert_rgb=False, processor_class="LlavaProcessor", size=None), "crop"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_equal_to_ours_are_accepted(tmp_path, image, expected):
    assert read(tmp_path, image) == (expected, None)


REFUSED = {
    "image_processor_type='SiglipImageProcessor' is not supported": dict(image_processor_type="SiglipImageProcessor"),
    "image_processor_type='LlavaNextImageProcessor'": dict(image_processor_type="LlavaNextImageProcessor"),
    "do_resize=False is not supported, only True": dict(do_resize=False),
    "do_center_crop='false' is not supported": dict(do_center_crop="false"),
    "do_rescale=False is not supported": dict(do_rescale=False),
    "do_normalize=0 is not supported": dict(do_normalize=0),
    "resample=2 is not supported, only 3": dict(resample=2),
    "rescale_factor=0.0078125 is not supported": dict(rescale_factor=1 / 128),
    r"size={'height': 24, 'width': 24} is not supported": dict(size={"height": 24, "width": 24}),
    r"size={'shortest_edge': 28} is not supported, only {'shortest_edge': 24}": dict(size={"shortest_edge": 28}),
    "size=28 is not supported": dict(size=28),
    "crop_size={'height': 24, 'width': 16} is not supported": dict(crop_size={"height": 24, "width": 16}),
    r"image_mean=\[0.5, 0.5, 0.5\] is not supported": dict(image_mean=[0.5, 0.5, 0.5]),
    r"image_std=\[1, 1\] is not supported": dict(image_std=[1, 1]),
    "image_std='wide' is not a number": dict(image_std="wide"),
    "do_pad='maybe' is not true or false": dict(do_pad="maybe"),
    "size: shortest_edge='big' is not a number": dict(size={"shortest_edge": "big"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_with_other_pixels_are_refused(tmp_path, message):
    print(message)
    with pytest.raises(DataError, match=f"preprocessor_config.json: {message}"):
        read(tmp_path, CLIP | REFUSED[message])


def test_image_processor_inside_the_processor_file_is_read(tmp_path):
    pads = CLIP | dict(image_processor_type="LlavaImageProcessor", do_pad=True)
    assert read(tmp_path, None, {"image_processor": pads}) == ("pad", None)
    with pytest.raises(DataError, match="processor_config.json: image_processor: resample=2 is not"):
        read(tmp_path, None, {"image_processor": pads | dict(resample=2)})
    assert read(tmp_path, CLIP, {"image_processor": pads}) == ("crop", None), "transformers prefers the file of its own"


@pytest.mark.parametrize(
    "processor, message",
    [
        (dict(patch_size=14), "patch_size=14, but the tower has patches of 8 pixels"),
        (dict(vision_feature_select_strategy="full"), "strategy='full', but config.json selects patch"),
        (dict(num_additional_image_tokens=2), "num_additional_image_tokens=2, but a CLIP tower has 1"),
    ],
)
def test_processor_that_contradicts_the_tower_is_refused(tmp_path, processor, message):
    agreeing = dict(patch_size="8", vision_feature_select_strategy="default", num_additional_image_tokens=1)
    read(tmp_path, CLIP, agreeing)
    with pytest.raises(DataError, match=f"processor_config.json: .*{message}"):
        read(tmp_path, CLIP, agreeing | processor)


@pytest.mark.parametrize("key", ["image_token_index", "image_token_id"])
@pytest.mark.parametrize("value", ["500", 500.0, [500], 500])
def test_image_token_id_is_read_in_every_certain_spelling(tmp_path, key, value):
    token = read(tmp_path, config={key: value})[1]
    assert token == 500 and type(token) is int


@pytest.mark.parametrize(
    "value, message",
    [(-200, "is below 0"), ([5, 6], "is not a number"), ("<image>", "is not a number"), (5.5, "is not an integer")],
)
def test_image_token_id_that_is_none_is_refused(tmp_path, value, message):
    with pytest.raises(DataError, match=f"here/config.json: image_token_index=.* {message}"):
        read(tmp_path, config={"image_token_index": value})
    assert read(tmp_path, config={"image_token_index": None}) == ("crop", None)
