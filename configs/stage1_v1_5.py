"""LLaVA v1.5, stage 1: a two-layer projector between CLIP at 336 px and Vicuna-7B v1.5.

    python -m llava_jax.main --config=configs/stage1_v1_5.py \\
        --config.load.vision=data/clip-vit-large-patch14-336 \\
        --config.load.llm=data/vicuna-7b-v1.5

Not run on a pod yet. Meant for 8 accelerators of 16 GB (a v5e-8) or more, as configs/stage1.py.
13B: --config.model.llm=vicuna_13b_v1.5, with its weights and tokenizer.

On disk, not downloaded:
    data/llava_pretrain_lcs/blip_laion_cc_sbu_558k.json    LLaVA-Pretrain (LCS-558K)
    data/llava_pretrain_lcs/images/                        its images, in their five-digit folders
    data/clip-vit-large-patch14-336/                       Hugging Face's folder of the tower, as safetensors
    data/vicuna-7b-v1.5/                                   Vicuna's, with its tokenizer

Settings: arXiv 2310.03744 and its script: one epoch, batch 256, learning rate 1e-3, no decay, 3 % warm-up, cosine.
558,128 rows make 2,181 steps, 66 of them warm-up. 20,979,712 parameters are trained (13B: 31,467,520). Images are
cropped to the square, not padded: the published stage-1 script sets no aspect, and the original's default crops; only
stage 2 pads. To pad here as well: --config.stages.stage1.data.aspect=pad. Differs from the original: rows have 768
tokens, not 2048: <s>, 576 patches, a newline and 190 tokens for the caption. Gradients are clipped at 1, as in v1. The
published scripts set no clipping; to follow them: --config.stages.stage1.optimizer.clip=0
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "clip_l14_336", "vicuna_7b_v1.5", "mlp2x_gelu"
    c.tokenizer = "data/vicuna-7b-v1.5"
    c.run = ("stage1",)

    c.stages.stage1 = s = config.stage(batch=256, epochs=1)
    s.learning_rates = (("projector/.*", 1e-3), (".*", None))
    s.data.path = "data/llava_pretrain_lcs/blip_laion_cc_sbu_558k.json"
    s.data.image_folder = "data/llava_pretrain_lcs/images"
    s.data.template, s.data.aspect, s.data.length = "plain", "crop", 768
    s.save.projector = "workdir/stage1_v1_5/projector.safetensors"
    return c
