"""LLaVA v1.5, stage 2: instructions and academic VQA, 665K rows, images padded to the square at 336 px.

    python -m llava_jax.main --config=configs/stage2_v1_5.py \\
        --config.load.vision=data/clip-vit-large-patch14-336 \\
        --config.load.llm=data/vicuna-7b-v1.5 \\
        --config.load.projector=workdir/stage1_v1_5/projector.safetensors

Not run on a pod yet. Meant for 32 accelerators of 16 GB (a v5e-32) or more; on fewer, split the batch with
--config.stages.stage2.accumulation=2. 13B: --config.model.llm=vicuna_13b_v1.5.

On disk, not downloaded:
    data/llava_v1_5/llava_v1_5_mix665k.json    the mixture; some rows are text alone
    data/llava_v1_5/images/                    holds coco/train2017, gqa/images, ocr_vqa/images,
                                               textvqa/train_images, vg/VG_100K and vg/VG_100K_2
    data/clip-vit-large-patch14-336/           as in configs/stage1_v1_5.py, whose result is the projector
    data/vicuna-7b-v1.5/                       as there

Settings: arXiv 2310.03744 and its script: one epoch, batch 128, learning rate 2e-5, no decay, 3 % warm-up, cosine, 2048
tokens. 665,298 rows make 5,198 steps, 156 of them warm-up. Differs from the original: batches mix rows with and without
images (it groups them, for speed), and gradients are clipped at 1 where the published scripts set no clipping; to
follow them: --config.stages.stage2.optimizer.clip=0 The authors' numbers for their 7B model, not reproduced here: VQAv2
78.5, GQA 62.0, VizWiz 50.0, ScienceQA-IMG 66.8, TextVQA 58.2, POPE 85.9, MME 1510.7, MMBench 64.3, LLaVA-Bench (in the
wild) 65.4, MM-Vet 31.1.
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "clip_l14_336", "vicuna_7b_v1.5", "mlp2x_gelu"
    c.tokenizer = "data/vicuna-7b-v1.5"
    c.run = ("stage2",)

    c.stages.stage2 = s = config.stage(batch=128, epochs=1)
    s.learning_rates = (("vision/.*", None), (".*", 2e-5))
    s.data.path, s.data.image_folder = "data/llava_v1_5/llava_v1_5_mix665k.json", "data/llava_v1_5/images"
    s.data.template, s.data.aspect, s.data.length = "vicuna_v1", "pad", 2048
    return c
