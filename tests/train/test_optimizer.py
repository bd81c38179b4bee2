import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from llava_jax.config import Optimizer
from llava_jax.errors import ConfigError
from llava_jax.train.optimizer import learning_rates_per_parameter, lr_schedule, make_optimizer, state_bytes

PATHS = ["vision/layers/q/kernel", "projector/linear_1/kernel", "projector/linear_1/bias", "llm/head/kernel"]


def test_first_matching_row_decides():
    table = [("projector/.*/bias", 1.0), ("projector/.*", 2.0), ("vision/.*", None), (".*", 3.0)]
    assert learning_rates_per_parameter(PATHS, table) == dict(zip(PATHS, [None, 2.0, 1.0, 3.0], strict=True))
    assert learning_rates_per_parameter(PATHS[1:], [("projector/.*", 2e-3), (".*", None)]) == {
        "projector/linear_1/kernel": 2e-3, "projector/linear_1/bias": 2e-3, "llm/head/kernel": None,
    }  # fmt: skip


def test_regex_must_match_the_whole_path():
    with pytest.raises(ConfigError, match="no row .* covers parameter vision/layers/q/kernel"):
        learning_rates_per_parameter(PATHS, [("vision", None), ("projector/.*", 1.0), ("llm/.*", 1.0)])


@pytest.mark.parametrize(
    "table, message",
    [
        ([("projector/.*", 1.0)], r"covers parameter vision/layers/q/kernel; add one"),
        ([("projektor/.*", 1.0), ("projector/.*", 1.0), (".*", None)], r"'projektor/\.\*' decides for no parameter"),
        ([(".*", 1.0), ("projector/.*", None)], r"'projector/\.\*' decides for no parameter"),
        ([(".*", None)], "freezes every parameter"),
    ],
    ids=["uncovered", "typo", "hidden by an earlier row", "nothing to train"],
)
def test_contradictory_learning_rates_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        learning_rates_per_parameter(PATHS, table)


@pytest.mark.parametrize("steps, ratio", [(100, 0.03), (7, 0.5), (5198, 0.03), (10, 0.0), (1, 0.03)])
def test_cosine_schedule_equals_hugging_face(steps, ratio):
    warmup = int(np.ceil(ratio * steps))  # TrainingArguments.get_warmup_steps
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(lr_schedule(np.arange(steps), steps, ratio, "cosine"), expected, atol=1e-6)


def test_constant_schedule_only_warms_up():
    np.testing.assert_allclose(lr_schedule(np.arange(5), 10, 0.2, "constant"), [0, 0.5, 1, 1, 1])


PEAK = {"a/kernel": 1e-2, "a/bias": 1e-2, "b/scale": 3e-2, "b/kernel": 3e-2, "b/embedding": 1e-3}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    scale = 3.0 if step % 2 else 0.01  # clipped, then not
    return {path: scale * rng.standard_normal((3, 2), dtype=np.float32) for path in PEAK}


def test_updates_equal_torch_adamw_with_clipping_schedule_and_groups():
    """As in Hugging Face's Trainer: groups by decay (none on norms and biases) and rate, one clip_grad_norm_."""
    steps = 6
    config = Optimizer(warmup_ratio=0.3, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, clip=1.0)
    start = {path: np.random.default_rng(9).standard_normal((3, 2), dtype=np.float32) for path in PEAK}

    torch_params = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in start.items()}
    groups = [
        dict(params=[p], lr=PEAK[path], weight_decay=0.0 if path.endswith(("scale", "bias")) else 0.1)
        for path, p in torch_params.items()
    ]
    torch_optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    schedule = get_cosine_schedule_with_warmup(torch_optimizer, 2, steps)

    tx = make_optimizer(config, PEAK, steps)
    ours, state = jax.tree.map(jnp.asarray, start), tx.init(start)
    for step in range(steps):
        for path, g in gradients(step).items():
            torch_params[path].grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(torch_params.values(), 1.0)
        torch_optimizer.step()
        schedule.step()
        updates, state = tx.update(gradients(step), state, ours)
        ours = optax.apply_updates(ours, updates)
        for path, p in torch_params.items():
            np.testing.assert_allclose(ours[path], p.detach(), atol=2e-6, err_msg=f"{path}, step {step}")
    assert max(np.abs(ours[path] - start[path]).max() for path in PEAK) > 0.03  # parameters did change


def test_zero_clip_and_decay_disable_both():
    """Without clipping, Adam's first update is lr * sign(g) for any gradient; there is no warm-up here."""
    config = Optimizer(warmup_ratio=0.0, schedule="constant", clip=0.0)
    tx = make_optimizer(config, PEAK, 10)
    huge = jax.tree.map(lambda g: 1e3 * jnp.asarray(g), gradients(1))
    updates, _ = tx.update(huge, tx.init(huge), jax.tree.map(jnp.ones_like, huge))
    for path, u in updates.items():
        np.testing.assert_allclose(u, -PEAK[path] * np.sign(huge[path]), rtol=1e-5)


def test_state_bytes_count_two_moments_and_two_counters():
    params = {"a/kernel": jnp.zeros((3, 2)), "a/bias": jnp.zeros(5)}
    tx = make_optimizer(Optimizer(weight_decay=0.1), {path: 1.0 for path in params}, 10)
    assert state_bytes(tx.init(params)) == 2 * 4 * (6 + 5) + 2 * 4


def test_bfloat16_first_moment_barely_changes_the_update():
    full, half = (make_optimizer(Optimizer(first_moment=dtype), PEAK, 10) for dtype in ("float32", "bfloat16"))
    params = jax.tree.map(jnp.ones_like, gradients(0))
    exact, rounded = full.init(params), half.init(params)
    moments = [str(x.dtype) for x in jax.tree.leaves(rounded) if x.ndim]
    assert sorted(set(moments)) == ["bfloat16", "float32"] and moments.count("bfloat16") == len(PEAK)
    for step in range(4):
        expected, exact = full.update(gradients(step), exact, params)
        actual, rounded = half.update(gradients(step), rounded, params)
    for path, update in expected.items():
        np.testing.assert_allclose(actual[path], update, rtol=0.02, atol=1e-3 * PEAK[path], err_msg=path)
        assert (np.asarray(actual[path]) != np.asarray(update)).any(), "the update is rounded"
