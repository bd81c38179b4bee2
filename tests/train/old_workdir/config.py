"""The run in `workdir/`: two short stages of a model of 17,272 parameters.

The commit 4553b04 of this project wrote `workdir/`: SIGTERM stopped the run after step 2 of stage `two`, before the
evaluation of that step. `expected.json` holds what the same commit found in it: SHA-256 of every array of the
checkpoint, and the metrics of the whole run, which a copy of the folder was resumed for.
"""

from llava_jax import config
from llava_jax.config import architectures
from llava_jax.config.architectures import LlamaConfig, VisionConfig

architectures.VISION["old_micro"] = VisionConfig(
    image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
architectures.LLM["old_micro"] = LlamaConfig(
    vocab_size=512, width=8, layers=2, heads=2, kv_heads=1, head_size=4, mlp_width=16, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=128,
)  # fmt: skip


def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "old_micro"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.projector, c.model.remat = "mlp2x_gelu", "none"
    c.run = ("one", "two")
    c.log_every, c.checkpoint.every, c.checkpoint.keep, c.hash_frozen = 1, 5, 1, True
    c.guard.spike, c.guard.window = 8.0, 4
    for name, scenes, template, length in (("one", "caption", "plain", 40), ("two", "instruct", "vicuna_v1", 88)):
        s = config.stage(batch=8, steps=4 if name == "one" else 8)
        s.learning_rates = (
            (("projector/.*", 1e-2), (".*", None)) if name == "one" else (("vision/.*", None), (".*", 1e-3))
        )
        s.data.source, s.data.threads = "scenes", 2
        s.data.scenes, s.data.template, s.data.length = scenes, template, length
        s.eval.every, s.eval.samples, s.eval.answers, s.eval.max_new_tokens = 2, 8, 1, 4
        c.stages[name] = s
    c.stages.two.accumulation, c.stages.two.loss_chunks, c.stages.two.optimizer.weight_decay = 2, 2, 0.1
    c.stages.two.batch, c.stages.two.learning_rates = 16, (("vision/.*", None), (".*", 1e-3))
    c.stages.two.eval.before, c.stages.two.eval.questions = True, 1
    return c
