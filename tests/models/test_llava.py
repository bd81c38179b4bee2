import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from llava_jax.config.architectures import IMAGE_TOKEN_ID, projector_depth
from llava_jax.errors import ConfigError
from llava_jax.models.cache import KVCache
from llava_jax.models.llava import Llava, merge
from llava_jax.models.params import abstract_params, init_params
from llava_jax.models.projector import Projector
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import logical_rules
from tests.fixtures.hf_models import hf_llava, llava_params
from tests.fixtures.tiny_models import uneven

RNG = np.random.default_rng(0)
IMAGE = [IMAGE_TOKEN_ID] * uneven().vision.features  # 9


def batch(rows, images):
    """Token lists and image lists -> the arrays of a batch, padded on the right; unused image slots are zero."""
    b, t, n = len(rows), max(map(len, rows)), max(map(len, images))
    tokens, positions, segment_ids = (np.zeros((b, t), np.int32) for _ in range(3))
    pixels = np.zeros((b, n, 24, 24, 3), np.uint8)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], positions[i, : len(row)], segment_ids[i, : len(row)] = row, range(len(row)), 1
        for j, image in enumerate(images[i]):
            pixels[i, j] = image
    return tokens, pixels, positions, segment_ids


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, *arrays):
    return Llava(config).apply({"params": params}, *arrays)


@pytest.fixture(scope="module")
def params():
    return llava_params(hf_llava(uneven(), image_token=63), uneven())


def picture():
    return RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)


def test_merge_replaces_placeholders_by_features_in_order():
    i = IMAGE_TOKEN_ID
    tokens = jnp.array([[5, i, i, 6, i], [i, 7, 8, 9, 9], [7, 8, 9, 9, 9]])
    text = jnp.array([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34]])[..., None]
    features = jnp.array([[100, 101, 102], [200, 201, 202], [300, 301, 302]])[..., None]
    np.testing.assert_array_equal(
        merge(tokens, text, features)[..., 0],
        [[10, 100, 101, 13, 102], [200, 21, 22, 23, 24], [30, 31, 32, 33, 34]],
    )


@pytest.mark.parametrize("count", [0, 2])
def test_surplus_placeholders_are_zero_and_rows_stay_separate(count):
    tokens = jnp.full((2, 4), IMAGE_TOKEN_ID)
    features = jnp.array([[1.0, 2.0], [3.0, 4.0]])[:, :count, None]
    merged = merge(tokens, jnp.ones((2, 4, 1)), features)[..., 0]
    np.testing.assert_array_equal(merged, [[1, 2, 0, 0], [3, 4, 0, 0]] if count else np.zeros((2, 4)))
    reads = jax.jacobian(lambda f: merge(tokens, jnp.ones((2, 4, 1)), f))(features)[:, :, 0, :, :, 0]
    assert not reads[0, :, 1].any() and not reads[1, :, 0].any()


@pytest.mark.parametrize(
    "name, depth", [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)]
)  # others: test_every_field
def test_projector_matches_torch(name, depth):
    config = uneven(projector=name)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32 if i == 0 else 40, 40) for i in range(depth)]
    params = {
        f"linear_{i + 1}": {"kernel": layer.weight.T.detach().numpy(), "bias": layer.bias.detach().numpy()}
        for i, layer in enumerate(layers)
    }
    x = RNG.standard_normal((2, 9, 32), dtype=np.float32)
    theirs = torch.nn.Sequential(*[m for layer in layers for m in (torch.nn.GELU(), layer)][1:])(torch.tensor(x))
    np.testing.assert_allclose(Projector(config).apply({"params": params}, x), theirs.detach(), atol=1e-5)
    assert projector_depth(name) == depth


def test_projector_init_is_uniform_like_torch():
    params = nn.unbox(Projector(uneven()).init(jax.random.key(0), np.zeros((1, 9, 32), np.float32))["params"])
    for name, fan_in in (("linear_1", 32), ("linear_2", 40)):
        for w in params[name].values():
            assert np.abs(w).max() <= fan_in**-0.5
            assert np.std(w) == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.25)


@pytest.mark.parametrize("name", ["identity", "mlp0x_gelu", "mlp2x_relu", "xmlp2x_gelu", "linear2"])
def test_unknown_projector_raises(name):
    with pytest.raises(ConfigError, match=name):
        abstract_params(uneven(projector=name))


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(vision=dict(select_feature="cls_patch")),
        dict(vision=dict(select_layer=-1)),
        dict(llm=dict(qkv_bias=True)),
    ],
    ids=str,
)
def test_logits_match_hugging_face(changes):
    """Two rows, one with two images, one without any; padded on the right."""
    config = uneven(**changes)
    model = hf_llava(config, image_token=63)
    image = [IMAGE_TOKEN_ID] * config.vision.features
    rows = [[1, *image, 5, 6, *image, 7], [1, 8, 9, 10]]
    pixels = RNG.standard_normal((2, 2, 24, 24, 3), dtype=np.float32)
    tokens, _, positions, segment_ids = batch(rows, [[], []])
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(np.where(tokens == IMAGE_TOKEN_ID, 63, tokens)).long(),
            pixel_values=torch.tensor(pixels[0]).permute(0, 3, 1, 2),
            attention_mask=torch.tensor(segment_ids).long(),
        ).logits.numpy()
    ours = np.asarray(logits(config, llava_params(model, config), tokens, pixels, positions, segment_ids))
    real = segment_ids == 1
    assert np.abs(ours - theirs)[real].max() <= 1e-4
    assert np.abs(theirs[real]).max() > 1


def test_mixed_batch_equals_single_rows(params):
    """Rows with one, no and two images, of unequal length."""
    a, b, c = picture(), picture(), picture()
    rows = [[1, *IMAGE, 5, 6], [1, 7, 8], [1, *IMAGE, 9, *IMAGE, 10]]
    images = [[a], [], [b, c]]
    together = logits(uneven(), params, *batch(rows, images))
    for i, (row, row_images) in enumerate(zip(rows, images, strict=True)):
        alone = logits(uneven(), params, *batch([row], [row_images]))
        np.testing.assert_allclose(together[i, : len(row)], alone[0], atol=2e-5)

    swapped = logits(uneven(), params, *batch(rows[2:], [[c, b]]))
    assert np.abs(swapped[0] - together[2]).max() > 1e-3  # the order of images matters


def test_cached_steps_after_an_image_prompt_match_a_full_pass(params):
    row, images = [1, *IMAGE, 5, 6, 7, 8], [[picture()]]
    tokens, pixels, positions, segment_ids = batch([row], images)
    expected = logits(uneven(), params, tokens, pixels, positions, segment_ids)

    @jax.jit
    def step(params, cache, *arrays):
        def run(model):
            hidden, new = model.hidden(*arrays, cache)
            return model.logits(hidden), new

        return nn.apply(run, Llava(uneven()))({"params": params})

    cache = KVCache.empty(uneven().llm, 1, len(row), "float32")
    for start, stop, pixels_now in [(0, 11, pixels), (11, 12, pixels[:, :0]), (12, 14, pixels[:, :0])]:
        part = (x[:, start:stop] for x in (tokens, positions, segment_ids))
        ours, cache = step(params, cache, next(part), pixels_now, *part)
        np.testing.assert_allclose(ours, expected[:, start:stop], atol=2e-5)


@pytest.mark.parametrize("n", [0, 1])
def test_init_creates_every_parameter_with_or_without_images(params, n):
    tokens = np.zeros((1, 4), np.int32)
    images = np.zeros((1, n, 24, 24, 3), np.uint8)
    created = jax.eval_shape(Llava(uneven()).init, jax.random.key(0), tokens, images, tokens, tokens)["params"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype.name), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype.name), nn.unbox(created)) == shapes


def test_init_params_match_abstract_params_and_differ_by_layer():
    fresh = init_params(uneven(), jax.random.key(0))
    abstract = nn.unbox(abstract_params(uneven()))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    q = fresh["llm"]["layers"]["q"]["kernel"]
    assert np.std(q) == pytest.approx(uneven().llm.width ** -0.5, rel=0.05)  # variance 1 / fan_in
    assert np.abs(q[0] - q[1]).max() > 0.01
    np.testing.assert_array_equal(fresh["llm"]["norm"]["scale"], np.ones(40))
    np.testing.assert_array_equal(fresh["vision"]["layers"]["q"]["bias"], np.zeros((3, 4, 8)))


def test_text_only_batch_skips_the_vision_tower(params):
    arrays = batch([[1, 2, 3]], [[]])
    broken = params | {"vision": jax.tree.map(lambda x: x * np.nan, params["vision"])}
    assert np.isfinite(logits(uneven(), broken, *arrays)).all()


def test_bfloat16_logits_are_close_to_float32(params):
    arrays = batch([[1, *IMAGE, 5, 6], [1, 7, 8]], [[picture()], []])
    real = arrays[3] == 1
    exact = np.asarray(logits(uneven(), params, *arrays))[real]
    config = dataclasses.replace(uneven(), dtype="bfloat16", feature_dtype="bfloat16")
    stored = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    for weights in (params, stored):
        ours = logits(config, weights, *arrays)
        assert ours.dtype == jnp.float32
        assert np.abs(np.asarray(ours)[real] - exact).mean() < 0.03 * np.abs(exact).mean()


def test_activations_have_sharding_constraints_under_a_mesh(params):
    """Under a mesh that flax does not see, `constrain` would silently do nothing."""
    arrays = batch([[1, *IMAGE, 5, 6]], [[picture()]])
    fresh = jax.jit(lambda p, *a: Llava(uneven()).apply({"params": p}, *a))
    with jax.set_mesh(make_mesh(1, 1, 1, jax.devices()[:1])), logical_rules():
        text = fresh.lower(params, *arrays).as_text()
    assert text.count("sharding_constraint") + text.count("@Sharding") >= 8  # each counts once inside a loop
