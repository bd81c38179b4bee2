"""Trains the two tiny towers that ship with the package, from random weights, through the ordinary train loop.

    python -m llava_jax.main --config=configs/tiny_towers.py

Stage `sight` trains the ViT by captioning (CapPa, arXiv 2306.07915) with a decoder that is thrown away; stage
`language` trains a new decoder on text alone. So the two towers that LLaVA joins have never met each other, as CLIP and
Vicuna had not. Both are written to llava_jax/pretrained/*.safetensors.
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
    c.save.vision, c.save.llm = "tiny:vision", "tiny:llm"
    c.checkpoint.every = 250
    c.run = ("sight", "language")
    c.log_every = 50

    c.stages.sight = s = config.stage(batch=64, steps=3000, learning_rates=((".*", 2e-3),))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 56
    s.eval.every = 500

    c.stages.language = s = config.stage(batch=64, steps=1800, fresh=("llm",))
    s.learning_rates = (("llm/.*", 2e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "text", "plain", 112
    s.data.max_images = 0
    s.eval.every = 500
    return c
