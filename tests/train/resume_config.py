"""Two short stages of a micro model, a checkpoint every 3 steps: small enough to be killed and resumed many times."""

from llava_jax import config
from tests.fixtures import micro_towers  # noqa: F401


def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "micro"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.run = ("stage1", "stage2")
    c.log_every = 1
    c.checkpoint.every = 3

    c.stages.stage1 = s = config.stage(batch=8, steps=8)
    s.learning_rates = (("projector/.*", 2e-3), (".*", None))
    s.data.scenes, s.data.template, s.data.length = "caption", "plain", 56

    c.stages.stage2 = s = config.stage(batch=8, steps=8, accumulation=2, loss_chunks=2, fresh=("projector",))
    s.learning_rates = (("vision/.*", None), (".*", 1e-3))
    s.data.scenes, s.data.template, s.data.length = "instruct", "vicuna_v1", 104
    s.eval.before = True

    for s in c.stages.values():
        s.data.source, s.data.threads, s.optimizer.weight_decay = "scenes", 2, 0.1
        s.eval.every, s.eval.samples, s.eval.answers, s.eval.max_new_tokens = 4, 8, 2, 4
    return c
