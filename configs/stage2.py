"""LLaVA v1, stage 2: visual instruction tuning of projector and language model; the ViT stays frozen.

    python -m llava_jax.main --config=configs/stage2.py \\
        --config.load.vision=data/clip-vit-large-patch14 \\
        --config.load.llm=data/vicuna-7b-v1.3 \\
        --config.load.projector=workdir/stage1/projector.safetensors

Not run on a pod yet. Meant for 16 accelerators of 16 GB (a v5e-16) or more: weights, gradients and Adam's two moments
of 6.7 billion parameters are 108 GB in float32, 6.7 GB a chip. 13B: --config.model.llm=vicuna_13b_v1.3 and twice the
chips. `python -m llava_jax plan` estimates memory and time per TPU slice; docs/planning.md has a table.

On disk, not downloaded:
    data/llava_instruct/llava_instruct_150k.json    LLaVA-Instruct-158K
    data/coco/train2017/                            its images, named as in the file
    data/clip-vit-large-patch14/                    as in configs/stage1.py, whose result is the projector
    data/vicuna-7b-v1.3/                            as there

Settings: arXiv 2304.08485, section 5: three epochs, batch 32, learning rate 2e-5, no decay, 3 % warm-up, cosine, 2048
tokens. 157,712 rows make 14,786 steps; the original ends each epoch with a smaller batch and counts 14,787. Differs
from the original: batches of short samples have rows of 512, 768 or 1024 tokens (it pads to a batch's longest). The
paper's numbers, for its 13B model, not reproduced here: 85.1 % of GPT-4's score on LLaVA-Bench (COCO), 67.3 % in the
wild; 90.92 % on ScienceQA, after another fine-tuning from stage 1.
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "clip_l14_224", "vicuna_7b_v1.3", "linear"
    c.tokenizer = "data/vicuna-7b-v1.3"
    c.run = ("stage2",)

    c.stages.stage2 = s = config.stage(batch=32, epochs=3)
    s.learning_rates = (("vision/.*", None), (".*", 2e-5))
    s.data.path, s.data.image_folder = "data/llava_instruct/llava_instruct_150k.json", "data/coco/train2017"
    s.data.samples = 157_712
    s.data.template, s.data.aspect, s.data.length = "vicuna_v1", "crop", 2048
    s.data.lengths = (512, 768, 1024)
    return c
