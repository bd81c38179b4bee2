"""A small LLaVA learns to see in minutes, on two CPU cores and without a download."""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "tiny"
    c.model.projector = "mlp2x_gelu"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat, c.model.unroll = "none", True
    c.load.vision, c.load.llm = "tiny:vision", "tiny:llm"
    c.hash_frozen = True
    c.run = ("stage1", "stage2")
    c.log_every = 20
    c.checkpoint.every = 200

    c.stages.stage1 = s = config.stage(batch=64, steps=200)
    s.learning_rates = (("projector/.*", 2e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 56
    s.eval.before = True

    c.stages.stage2 = s = config.stage(batch=32, steps=300)
    s.learning_rates = (("vision/.*", None), (".*", 1e-3))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "instruct", "vicuna_v1", 112
    s.eval.before, s.eval.questions = True, 50
    return c
