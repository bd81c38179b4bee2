"""Learning rates per parameter and the optax transform of a stage.

A stage's table is a list of (regex over the parameter path, peak learning rate or None). The first row whose regex
matches the whole path applies; None means frozen. The optimizer never gets frozen parameters or gradients of them.
"""

import math
import re

import jax
import jax.numpy as jnp
import optax

from llava_jax.config.schema import Optimizer
from llava_jax.errors import ConfigError

NOT_DECAYED = ("scale", "bias")  # as in Hugging Face's Trainer, which the original LLaVA used


def learning_rates_per_parameter(paths, table) -> dict[str, float | None]:
    """Peak learning rate of every parameter, None for frozen.

    >>> table = [("projector/.*", 2e-3), (".*", None)]
    >>> learning_rates_per_parameter(["projector/linear_1/kernel", "llm/head/kernel"], table)
    {'projector/linear_1/kernel': 0.002, 'llm/head/kernel': None}

    Raises ConfigError for a parameter that no row covers, for a row that applies to no parameter (a typo would
    otherwise silently freeze what it should train), and if all parameters are frozen.
    """
    rates, used = {}, set()
    for path in paths:
        for i, (pattern, rate) in enumerate(table):
            if re.fullmatch(pattern, path):
                rates[path] = rate
                used.add(i)
                break
        else:
            raise ConfigError(f"no row of learning_rates covers parameter {path}; add one, e.g. ('.*', None)")
    unused = [pattern for i, (pattern, _) in enumerate(table) if i not in used]
    if unused:
        modules = sorted({"/".join(path.split("/")[:2]) for path in rates})
        raise ConfigError(
            f"learning_rates: {', '.join(map(repr, unused))} decides for no parameter; known: {', '.join(modules)}"
        )
    if all(rate is None for rate in rates.values()):
        raise ConfigError("learning_rates freezes every parameter: nothing to train")
    return rates


def lr_schedule(step, steps: int, warmup_ratio: float, kind: str):
    """The factor on the peak rate for update number `step` (0-based int or int32 array).

    Linear warm-up from 0 over ceil(warmup_ratio * steps) updates, then a half cosine to 0 (or constant), as in Hugging
    Face's `get_cosine_schedule_with_warmup`, which the original LLaVA used: the first update has rate 0.
    """
    warmup = math.ceil(warmup_ratio * steps)
    step = jnp.asarray(step, jnp.float32)
    warmup_share = step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    decay_share = 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1))) if kind == "cosine" else jnp.ones_like(step)
    return jnp.where(step < warmup, warmup_share, decay_share)


def make_optimizer(config: Optimizer, peak_lr: dict[str, float], steps: int) -> optax.GradientTransformation:
    """AdamW over the trained parameters (a flat dict with the keys of `peak_lr`), each at its own peak rate.

    Gradients are clipped by their global norm. Weight decay is decoupled and scaled by the rate. The second moment is
    always float32: a bfloat16 value does not change by a thousandth of itself, which is what 1 - b2 adds.
    """
    decayed = {path: path.rsplit("/", 1)[-1] not in NOT_DECAYED for path in peak_lr}

    def scale_by_rate(updates, count):
        now = lr_schedule(count, steps, config.warmup_ratio, config.schedule)
        return {path: -peak_lr[path] * now * u for path, u in updates.items()}

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params
        return scale_by_rate(updates, state.count), optax.ScaleByScheduleState(count=state.count + 1)

    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.first_moment),
        optax.add_decayed_weights(config.weight_decay, mask=decayed) if config.weight_decay else optax.identity(),
        optax.GradientTransformation(init, update),
    )


def state_bytes(opt_state) -> int:
    """Bytes of optimizer state, from concrete or abstract arrays."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(opt_state))
