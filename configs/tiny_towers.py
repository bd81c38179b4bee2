"""Trains the two tiny towers that ship with the package, from random weights, through the ordinary train loop.

    python -m llava_jax.main --config=configs/tiny_towers.py

Stage `language` trains a LLaMA on text alone, `dialogue` goes on with conversations about scenes that are described in
words, `sight` trains a ViT by captioning (CapPa, arXiv 2306.07915) with that LLaMA as its decoder, `study`
goes on with facts about pictures as running text. The projector between them is thrown away: the quickstart's stage 1
begins with a random one. The towers are written to llava_jax/pretrained/{llm,vision}.safetensors.
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
    c.checkpoint.every = 250
    c.run = ("language", "dialogue", "sight", "study")
    c.log_every = 50

    c.stages.language = s = config.stage(batch=64, steps=1000)
    s.learning_rates = (("llm/.*", 2e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "text", "plain", 112
    s.data.max_images = 0
    s.eval.every = 250

    c.stages.dialogue = s = config.stage(batch=48, steps=700)
    s.learning_rates = (("llm/.*", 2e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "dialogue", "vicuna_v1", 136
    s.data.max_images = 0
    s.eval.every = 350

    c.stages.sight = s = config.stage(batch=64, steps=1500)
    s.learning_rates = (("llm/.*", 1e-3), (".*", 2e-3))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 56
    s.eval.every = 500

    c.stages.study = s = config.stage(batch=48, steps=600)
    s.learning_rates = ((".*", 1e-3),)
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "study", "plain", 88
    s.eval.every = 300
    s.save.vision, s.save.llm = "tiny:vision", "tiny:llm"
    return c
