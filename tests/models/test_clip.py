import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from transformers import CLIPImageProcessor

from llava_jax.errors import ConfigError
from llava_jax.models.clip import Clip, normalize
from tests.fixtures.hf_models import clip_params, hf_clip, weights
from tests.fixtures.tiny_models import uneven
from tests.models.products import products

RNG = np.random.default_rng(0)
PIXELS = RNG.standard_normal((2, 24, 24, 3), dtype=np.float32)


@functools.partial(jax.jit, static_argnums=0)
def features(config, params, images=PIXELS):
    return Clip(config).apply({"params": params}, images)


@pytest.fixture(scope="module")
def tower():
    model = hf_clip(uneven().vision)
    return model, clip_params(weights(model), uneven())


def test_normalize_matches_the_clip_image_processor():
    image = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    theirs = CLIPImageProcessor(do_resize=False, do_center_crop=False)(image, return_tensors="np").pixel_values
    ours = normalize(jnp.asarray(image[None]))
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=1e-5)
    np.testing.assert_array_equal(normalize(ours), ours)  # floating point is returned as it is


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("select_layer", [0, 1, -1, -2])
def test_features_match_hugging_face_hidden_states(tower, select_layer, select_feature):
    model, params = tower
    config = uneven(vision=dict(select_layer=select_layer, select_feature=select_feature))
    with torch.no_grad():
        states = model(torch.tensor(PIXELS).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    theirs = states[select_layer].numpy()[:, select_feature == "patch" :]
    ours = features(config, params)
    assert ours.shape == (2, config.vision.features, config.vision.width) == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_gelu_tower_matches_hugging_face():
    config = uneven(vision=dict(activation="gelu", select_layer=-1))
    model = hf_clip(config.vision)
    with torch.no_grad():
        theirs = model(torch.tensor(PIXELS).permute(0, 3, 1, 2)).last_hidden_state.numpy()[:, 1:]
    np.testing.assert_allclose(features(config, clip_params(weights(model), config)), theirs, atol=1e-4)


def test_uint8_and_normalized_images_give_equal_features(tower):
    images = jnp.asarray(RNG.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8))
    ours = [features(uneven(), tower[1], x) for x in (images, normalize(images))]
    np.testing.assert_allclose(*ours, atol=1e-5)


@pytest.mark.parametrize("select_layer", [0, 1, -2, -1])
def test_blocks_after_the_selected_layer_are_not_computed(tower, select_layer):
    config = uneven(vision=dict(select_layer=select_layer))
    used = config.vision.blocks_used
    per_block = 8  # q, k, v, scores, weighted values, o, up, down
    assert len(products(lambda p: features(config, p), tower[1])) == 1 + used * per_block

    gradient = jax.jit(jax.grad(lambda p: (features(config, p) ** 2).sum()))(tower[1])
    for g in jax.tree.leaves(gradient["layers"]["q"]["kernel"]):
        assert [bool(np.any(block)) for block in g] == [i < used for i in range(config.vision.layers)]


@pytest.mark.parametrize("select_layer", [0, -2])
def test_init_creates_every_block_and_the_final_norm(tower, select_layer):
    config = uneven(vision=dict(select_layer=select_layer))
    ours = nn.unbox(jax.eval_shape(Clip(config).init, jax.random.key(0), PIXELS)["params"])
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(lambda x: x.shape, tower[1])


@pytest.mark.parametrize(
    "field, value", [("select_feature", "cls"), ("activation", "relu"), ("select_layer", -5), ("select_layer", 4)]
)
def test_unknown_config_values_raise(tower, field, value):
    with pytest.raises(ConfigError, match=f"{field}.*{value}"):
        features(uneven(vision={field: value}), tower[1])


def test_wrong_image_size_raises(tower):
    with pytest.raises(ConfigError, match="16, 16, 3.*24, 24, 3"):
        features(uneven(), tower[1], PIXELS[:, :16, :16])


@pytest.mark.parametrize("changes", [dict(remat="full"), dict(remat="save_qkv"), dict(unroll=True)], ids=str)
def test_remat_and_unroll_keep_the_features(tower, changes):
    expected = features(uneven(), tower[1])
    np.testing.assert_allclose(features(dataclasses.replace(uneven(), **changes), tower[1]), expected, atol=1e-5)
