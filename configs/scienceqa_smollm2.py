"""ScienceQA small enough for two CPU cores: SmolLM2-135M and a small tower, beside configs/scienceqa.py.

    python -m llava_jax.main --config=configs/scienceqa_smollm2.py --workdir=workdir/scienceqa_smollm2
    python -m llava_jax eval scienceqa predict workdir/scienceqa_smollm2 --problems data/scienceqa \\
        --out answers.jsonl --dtype float32 --max-new-tokens 512
    python -m llava_jax eval scienceqa score answers.jsonl --problems data/scienceqa

On disk, all yours to bring (each path is a setting):
    data/scienceqa/problems.json, pid_splits.json, images/    ScienceQA's, or some of it
    data/SmolLM2-135M-Instruct.Q4_1.gguf                      the language model with its tokenizer

One epoch of the train split in SmolLM2's own chat format, lecture and explanation before the answer. Of 1,041 train
problems with re-annotated lectures 4 are longer than the rows of 640 tokens and lose their end; packed they make 516
rows, 258 steps. To learn the answers alone, a third of the tokens, in more epochs:
--config.stages.scienceqa.data.prompt_format=QCM-A --config.stages.scienceqa.epochs=3

Measured (2026-11-23, two cores): 258 steps of 8.3 s, 45 minutes with tests beside a part of it, from the tower and
the projector of a run of configs/smollm2.py. 181 test problems, `predict --max-new-tokens 400`, strict: 56 right,
30.9 % (95 %: 24.7 to 38.0); 46 answers name no letter. Drawing choices has 39.9 %, always saying B 44.2 %. SmolLM2
before, asked in words: no answer in the form, 0 of 181 (lenient: 22). So it learned the form, and little more: 79 of
the problems have an image, of which training had none. Validation was not measured.

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

    c.stages.scienceqa = s = config.stage(batch=2, epochs=1)
    s.learning_rates = (("vision/.*", None), (".*", 5e-5))
    s.data.path, s.data.split, s.data.prompt_format = "data/scienceqa", "train", "QCM-LEA"
    s.data.template, s.data.bad_ceiling = "chatml", 1.0
    s.data.length, s.data.packing, s.data.max_images = 640, "pack", 8
    s.data.threads = 2
    s.optimizer.b2 = 0.98  # short runs, as in the quickstart
    s.loss_chunks = 4  # of 49,152 logits a token
    return c
