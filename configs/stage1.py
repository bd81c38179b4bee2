"""LLaVA v1, stage 1: trains a linear projector from CLIP's features to Vicuna-7B's token embeddings, at 224 px.

    python -m llava_jax.main --config=configs/stage1.py \\
        --config.load.vision=data/clip-vit-large-patch14 \\
        --config.load.llm=data/vicuna-7b-v1.3

Not run on a pod yet. Meant for 8 accelerators of 16 GB (a v5e-8) or more: the frozen model is 13.5 GB in bfloat16,
sharded over them. If one chip can hold it, replicas avoid the all-gather: --config.mesh.data=-1 --config.mesh.fsdp=1.
13B: --config.model.llm=vicuna_13b_v1.3, with its weights and tokenizer.

On disk, not downloaded:
    data/llava_pretrain/chat.json            LLaVA-CC3M-Pretrain-595K
    data/llava_pretrain/images/              its images.zip, unpacked
    data/clip-vit-large-patch14/             Hugging Face's folder of the tower, as safetensors
    data/vicuna-7b-v1.3/                     Vicuna's, with its tokenizer. Without --config.load.* a tower is random,
                                             which is useful only for speed tests.

Settings: arXiv 2304.08485, section 5: one epoch, batch 128, learning rate 2e-3, no decay, 3 % warm-up, cosine. 595,375
rows make 4,652 steps, 140 of them warm-up. 4,198,400 parameters are trained (13B: 5,248,000). Differs from the
original: rows have 384 tokens, not 2048. Shapes are static here, and a row is <s>, 256 patches, a caption and a
newline: 384 leave 126 tokens for the caption and cost a fifth. Longer captions are truncated. The projector is written
to workdir/stage1/projector.safetensors, from where configs/stage2.py's command loads it.
"""

from llava_jax import config


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "clip_l14_224", "vicuna_7b_v1.3", "linear"
    c.tokenizer = "data/vicuna-7b-v1.3"
    c.run = ("stage1",)

    c.stages.stage1 = s = config.stage(batch=128, epochs=1)
    s.learning_rates = (("projector/.*", 2e-3), (".*", None))
    s.data.path, s.data.image_folder = "data/llava_pretrain/chat.json", "data/llava_pretrain/images"
    s.data.samples = 595_375
    s.data.template, s.data.aspect, s.data.length = "plain", "crop", 384
    s.save.projector = "workdir/stage1/projector.safetensors"
    return c
