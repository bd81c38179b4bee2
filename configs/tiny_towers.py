"""Trains the two tiny towers that ship with the package from random weights, with the normal train loop.

    python -m llava_jax.main --config=configs/tiny_towers.py

Stage `sight` trains a ViT by captioning, as CapPa does (arXiv 2306.07915); the LLaMA that was its decoder is
discarded. Stage `study` trains a new LLaMA on that ViT with short questions about images, answered in running text; in
stage `tell` it also learns to caption and to reason. The projector is discarded too: the quickstart's stage 1 starts
with a random one. The towers are written to llava_jax/pretrained/{llm,vision}.safetensors.
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.seed = 1
    c.model.vision = c.model.llm = "tiny"
    c.model.projector = "mlp2x_gelu"
    c.model.select_layer = -1
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat, c.model.unroll = "none", True
    c.checkpoint.every = 500
    c.run = ("sight", "study", "tell")
    c.log_every = 50

    c.stages.sight = s = config.stage(batch=32, steps=1500)
    # With a higher rate the ViT loses features that the language model does not use yet: at 1e-3 it loses the shapes
    # before the captions learn to name them.
    s.learning_rates = (("vision/.*", 3e-4), (".*", 2e-3))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 48
    s.optimizer.b2 = 0.98
    s.eval.every = 500

    c.stages.study = s = config.stage(batch=96, steps=3400)
    s.fresh = ("llm",)
    # ViT and projector are frozen: trained further, their features lose the positions in the image before the language
    # model learns to use them.
    s.learning_rates = (("llm/.*", 2e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "study", "plain", 24
    s.optimizer.b2 = 0.98
    s.eval.every = 1000

    c.stages["tell"] = s = config.stage(batch=48, steps=1200)
    s.learning_rates = (("llm/.*", 1e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "tell", "plain", 48
    s.optimizer.b2 = 0.98
    s.save.vision, s.save.llm = "tiny:vision", "tiny:llm"
    return c
