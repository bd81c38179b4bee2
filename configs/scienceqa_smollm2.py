"""ScienceQA on two CPU cores: configs/scienceqa.py with SmolLM2-135M and a small tower.

    python -m llava_jax.main --config=configs/scienceqa_smollm2.py --workdir=workdir/scienceqa_smollm2
    python -m llava_jax eval scienceqa predict workdir/scienceqa_smollm2 --problems data/scienceqa \\
        --out answers.jsonl --prompt-format QCM-A --max-new-tokens 24 --batch 16
    python -m llava_jax eval scienceqa score answers.jsonl --problems data/scienceqa

On disk, not downloaded (each path is a setting):
    data/scienceqa/problems.json, pid_splits.json, images/    ScienceQA's, or a part of it
    data/SmolLM2-135M-Instruct.Q4_1.gguf                      the language model with its tokenizer

Three epochs of the train split in SmolLM2's own chat format, the answer alone: 1,041 train problems with re-annotated
lectures, packed into rows of 640 tokens, make 258 steps. To train on lecture and explanation before the answer, as
configs/scienceqa.py does (three times the tokens, one epoch):
--config.stages.scienceqa.data.prompt_format=QCM-LEA --config.stages.scienceqa.epochs=1

Measured (2026-11-23, two cores, with other load): 258 steps in 1,522 s, then 181 test problems in 62 s and 371
of validation in 95 s (`--split val --missing-images text`: 191 of them have an image, which was missing).
Strict, with the 95 % interval:

                                        test                        validation
    this config                         77/181 42.5 (35.6 to 49.8)  140/371 37.7 (33.0 to 42.8)
    QCM-LEA, one epoch                  56/181 30.9 (24.7 to 38.0)  not measured
    SmolLM2 before training, text only  0/181 (lenient: 22)         0/371 (lenient: 62)
    random choice                       39.9                        40.9
    always B                            80/181 44.2                 169/371 45.6

So it learned the answer format (3 of 552 answers name no choice), but not the subject: the model is too small, or 1,041
problems are too few. With the explanation first, more answers lack a letter (46 of 181).

A problem whose image is missing is replaced with another one, without a limit (data.bad_ceiling=1): with no images on
disk, training uses the problems without images, each about twice. To evaluate the others: predict --missing-images
text. The tower is random; configs/smollm2.py trains one with its projector (--config.stages.stage2.save.vision=FILE
--config.stages.stage2.save.projector=FILE there, --config.load.vision=FILE --config.load.projector=FILE here).
"""

from llava_jax import config

LLM = "data/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config():
    c = config.defaults()
    c.model.vision, c.model.llm, c.model.projector = "small_128", "smollm2_135m", "mlp2x_gelu"
    c.model.dtype = c.model.feature_dtype = "bfloat16"
    c.model.remat = "full"
    c.load.llm = c.tokenizer = LLM
    c.run = ("scienceqa",)
    c.checkpoint.every = 50

    c.stages.scienceqa = s = config.stage(batch=2, epochs=3)
    s.learning_rates = (("vision/.*", None), (".*", 5e-5))
    s.data.path, s.data.split, s.data.prompt_format = "data/scienceqa", "train", "QCM-A"
    s.data.template, s.data.bad_ceiling = "chatml", 1.0
    s.data.length, s.data.packing, s.data.max_images = 640, "pack", 8
    s.data.threads = 2
    s.optimizer.b2 = 0.98  # short runs, as in the quickstart
    s.loss_chunks = 4  # of 49,152 logits a token
    return c
