"""LLaVA v1, stage 2 on rows that `datagen instruct` wrote (docs/data_generation.md).

    python -m llava_jax.main --config=configs/instruct_own.py \\
        --config.load.vision=data/clip-vit-large-patch14 \\
        --config.load.llm=data/vicuna-7b-v1.3 \\
        --config.load.projector=workdir/stage1/projector.safetensors

Not run on a pod yet. Models and settings are those of configs/stage2.py, which describes them: three epochs, batch 32,
learning rate 2e-5. The rows decide the number of steps. To compare kinds of rows, as the paper does on LLaVA-Bench,
make each choice of kinds with `datagen instruct` (--conversation-rows, --detail-rows, --reasoning-rows) and train on
each for the same number of steps: --config.stages.stage2.steps=1000

On disk, not downloaded:
    data/instruct_own/instruct.json     OUT/instruct.json of `datagen instruct`
    data/coco/train2017/                the images that its contexts name
    data/clip-vit-large-patch14/        as in configs/stage1.py, whose result is the projector
    data/vicuna-7b-v1.3/                as there
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "clip_l14_224", "vicuna_7b_v1.3", "linear"
    c.tokenizer = "data/vicuna-7b-v1.3"
    c.run = ("stage2",)

    c.stages.stage2 = s = config.stage(batch=32, epochs=3)
    s.learning_rates = (("vision/.*", None), (".*", 2e-5))
    s.data.path, s.data.image_folder = "data/instruct_own/instruct.json", "data/coco/train2017"
    s.data.template, s.data.aspect, s.data.length = "vicuna_v1", "crop", 2048
    s.data.lengths = (512, 768, 1024)
    return c
