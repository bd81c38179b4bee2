"""Trains a small LLaVA in minutes, on two CPU cores and without a download.

    python -m llava_jax.main --config=configs/quickstart.py

The paper's two stages (arXiv 2304.08485, section 4.2) on synthetic scenes, from two tiny pretrained towers
(configs/tiny_towers.py trains them). Stage 1 trains only a new projector, on captions. Stage 2 trains projector and
language model, on conversations, descriptions and reasoning. At the end it reports accuracy on held-out scenes by kind
of question: before and after stage 2, with the image, without it, and by chance.
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "tiny"
    c.model.projector = "mlp2x_gelu"
    # LLaVA uses the second-to-last block (-2), because CLIP trains only the CLS token of the last one. This ViT was
    # trained by captioning from its last block.
    c.model.select_layer = -1
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat, c.model.unroll = "none", True
    c.load.vision, c.load.llm = "tiny:vision", "tiny:llm"
    c.hash_frozen = True
    c.run = ("stage1", "stage2")
    c.log_every = 20
    c.checkpoint.every = 200

    # Many small batches and a high learning rate: if the projector is still bad when stage 2 begins, the towers
    # unlearn.
    c.stages.stage1 = s = config.stage(batch=32, steps=400)
    s.learning_rates = (("projector/.*", 8e-3), (".*", None))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 48
    s.optimizer.b2 = 0.98  # short runs: a shorter average of squared gradients than AdamW's usual 0.999
    s.eval.before = True

    # At 2e-3 the language model forgets part of its visual knowledge before it learns the answers.
    c.stages.stage2 = s = config.stage(batch=32, steps=800)
    s.learning_rates = (("vision/.*", None), (".*", 1e-3))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "instruct", "vicuna_v1", 100
    s.optimizer.b2 = 0.98
    s.eval.before, s.eval.questions = True, 64
    return c
