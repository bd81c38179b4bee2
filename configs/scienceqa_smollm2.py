"""ScienceQA small enough for two CPU cores: SmolLM2-135M and a small tower, beside configs/scienceqa.py.

    python -m llava_jax.main --config=configs/scienceqa_smollm2.py --workdir=workdir/scienceqa_smollm2
    python -m llava_jax eval scienceqa predict workdir/scienceqa_smollm2 --problems data/scienceqa \\
        --out answers.jsonl --prompt-format QCM-A --max-new-tokens 24 --batch 16
    python -m llava_jax eval scienceqa score answers.jsonl --problems data/scienceqa

On disk, all yours to bring (each path is a setting):
    data/scienceqa/problems.json, pid_splits.json, images/    ScienceQA's, or some of it
    data/SmolLM2-135M-Instruct.Q4_1.gguf                      the language model with its tokenizer

Three epochs of the train split in SmolLM2's own chat format, the answer alone: 1,041 train problems with re-annotated
lectures, packed into rows of 640 tokens, make 258 steps. To learn lecture and explanation before the answer, as
configs/scienceqa.py does, three times the tokens, in one epoch:
--config.stages.scienceqa.data.prompt_format=QCM-LEA --config.stages.scienceqa.epochs=1

Measured (2026-11-23, two cores, other programs beside): 258 steps in 1,522 s, then 181 test problems in 62 s and 371
of validation in 95 s (`--split val --missing-images text`: 191 of them have an image, and none of these is there).
Strict, with the 95 % interval:

                                        test                        validation
    this config                         77/181 42.5 (35.6 to 49.8)  140/371 37.7 (33.0 to 42.8)
    QCM-LEA, one epoch                  56/181 30.9 (24.7 to 38.0)  not measured
    SmolLM2 before, asked in words      0/181 (lenient: 22)         0/371 (lenient: 62)
    drawing a choice                    39.9                        40.9
    always saying B                     80/181 44.2                 169/371 45.6

So it learned the form of the answer (3 of 552 name no choice), and nothing that these problems ask for: a model of this
size, or 1,041 problems, are too few. With the explanation first it loses its way more often (46 of 181 without a
letter).

A problem whose image is missing is replaced by another one, however many they are (data.bad_ceiling=1): with no image
on disk those without one are trained on, each about twice. To ask such problems: predict --missing-images text. The
tower starts at random; one that has learned to see, with its projector, comes from configs/smollm2.py
(--config.stages.stage2.save.vision=FILE --config.stages.stage2.save.projector=FILE there, --config.load.vision=FILE
--config.load.projector=FILE here).
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
