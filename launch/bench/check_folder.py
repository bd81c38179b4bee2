"""Trains models that no name describes, from `folder`, and compares every loss with transformers.

    python launch/bench/check_folder.py [--only=NAME] [--folder=DIR]

transformers writes tiny folders in the shapes of LLaMA 3.1, Qwen2, TinyLlama, CLIP B/32 and LAION's CLIP, with values
that no named architecture has. For each pair of a decoder and a tower, a run of 6 steps starts from them. For each
step, transformers computes the loss of the same batch with the same weights and its own config. Then the run is
converted, and transformers' logits of the result are compared with ours. Prints a line per pair; exit code 1 if a
relative difference exceeds 1e-5.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import torch
from jax.sharding import Mesh
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import llava_jax
from llava_jax import config
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.cli.verbs import run_command as command_line
from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig
from llava_jax.models.clip import normalize
from llava_jax.runtime.mesh import make_mesh
from llava_jax.text.token_row import Batch
from llava_jax.train import loop
from llava_jax.train.state import all_params

STEPS, LIMIT = 6, 1e-5
LLAMA_3_1 = LlamaConfig(
    vocab_size=576, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=1, head_dim=12, max_position_embeddings=256, rms_norm_eps=1e-3, tie_word_embeddings=False,
    rope_parameters=dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.5, high_freq_factor=3.0,
        original_max_position_embeddings=32,
    ),
)  # fmt: skip
QWEN2 = Qwen2Config(
    vocab_size=640, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=3e-3, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=1e6),
)  # fmt: skip
TINYLLAMA = LlamaConfig(  # as many rows as tokens: the image token is beyond the table
    vocab_size=500, hidden_size=32, intermediate_size=88, num_hidden_layers=1, num_attention_heads=8,
    num_key_value_heads=1, max_position_embeddings=96, rms_norm_eps=1e-2, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="linear", rope_theta=3e4, factor=2.0),
)  # fmt: skip
B_32 = CLIPVisionConfig(
    hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, image_size=32, patch_size=16,
    hidden_act="quick_gelu", layer_norm_eps=1e-2, projection_dim=24,
)  # fmt: skip
LAION = CLIPVisionConfig(
    hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
    hidden_act="gelu", layer_norm_eps=3e-3, projection_dim=16,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """A decoder and a tower. is_whole: they and a projector are in one LLaVA. layer, strategy, act: as in LlavaConfig;
    act `linear` is a projector of one layer."""

    llm: LlamaConfig | Qwen2Config
    vision: CLIPVisionConfig
    is_whole: bool
    layer: int
    strategy: str
    act: str

    def llava(self, image_token: int, vocabulary: int) -> LlavaConfig:
        text = copy.deepcopy(self.llm)
        text.vocab_size = vocabulary
        return LlavaConfig(
            vision_config=self.vision, text_config=text, image_token_index=image_token,
            vision_feature_layer=self.layer, vision_feature_select_strategy=self.strategy,
            projector_hidden_act=self.act, tie_word_embeddings=text.tie_word_embeddings,
        )  # fmt: skip


PAIRS = {
    "llama 3.1, laion": Pair(LLAMA_3_1, LAION, True, -1, "full", "gelu"),
    "qwen2, b/32": Pair(QWEN2, B_32, False, -2, "default", "linear"),
    "tinyllama, laion": Pair(TINYLLAMA, LAION, False, -2, "full", "gelu"),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """What a run had before a step, and the loss of that step."""

    params: dict[str, np.ndarray]
    batch: Batch
    loss: float


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Reinitializes every parameter, so that a dropped one changes the loss."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def write_weights(folder: Path, pair: Pair) -> dict[str, PreTrainedModel]:
    """Writes the pair's folders. Returns path of a folder in `folder` -> model."""
    if pair.is_whole:
        models = {"whole": LlavaForConditionalGeneration(pair.llava(500, pair.llm.vocab_size))}
    else:
        decoder = LlamaForCausalLM if isinstance(pair.llm, LlamaConfig) else Qwen2ForCausalLM
        models = {"llm": decoder(pair.llm), "vision": CLIPVisionModel(pair.vision)}
    for name, model in models.items():
        randomized(model).save_pretrained(folder / name)
    return models


def run_config(folder: Path, pair: Pair) -> config.Config:
    """A stage that trains everything on 8 samples of `folder`, from the pair's folders."""
    rows, rng = [], np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 24, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        answer = "A sun and a tree. " * (i % 3 + 1)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    c = config.defaults()
    c.model.vision = c.model.llm = "folder"
    c.model.projector = "linear" if pair.act == "linear" else f"mlp2x_{pair.act}"
    c.model.select_layer = pair.layer
    c.model.select_feature = "cls_patch" if pair.strategy == "full" else "patch"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    for module in ("vision", "llm", "projector") if pair.is_whole else ("vision", "llm"):
        c.load[module] = str(folder / ("whole" if pair.is_whole else module))
    c.run, c.tokenizer = ("fit",), "tiny"
    c.stages.fit = s = config.stage(batch=8, steps=STEPS, learning_rates=((".*", 1e-3),))
    s.data.path, s.data.image_folder = str(folder / "rows.json"), str(folder / "images")
    s.data.length, s.data.threads, s.data.template = 72, 1, "vicuna_v1"
    return config.from_config_dict(c)


@contextlib.contextmanager
def recorded_steps() -> Iterator[list[Step]]:
    """Yields a list that receives each step of the runs inside."""
    steps, make = [], loop.make_train_step

    def make_recording(*args):
        step = make(*args)

        def recording(state, batch, *rest):
            params, rows = jax.device_get((all_params(state), batch))
            state, metrics = step(state, batch, *rest)
            steps.append(Step(params, rows, float(metrics["loss"])))
            return state, metrics

        return recording

    with mock.patch.object(loop, "make_train_step", make_recording):
        yield steps


def inputs(batch: Batch, image_token: int) -> dict[str, torch.Tensor]:
    """transformers' arguments for one of our batches."""
    tokens = np.where(batch.tokens == IMAGE_TOKEN_ID, image_token, batch.tokens)
    pixels = np.asarray(normalize(batch.images[:, 0])).transpose(0, 3, 1, 2)
    return dict(
        input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(batch.segment_ids > 0).long(),
        pixel_values=torch.tensor(pixels), labels=torch.tensor(np.where(batch.target_mask, tokens, -100)).long(),
    )  # fmt: skip


def outputs(model: LlavaForConditionalGeneration, batch: Batch):
    with torch.no_grad():
        return model(**inputs(batch, model.config.image_token_id))


def their_loss(model: LlavaForConditionalGeneration, step: Step) -> float:
    """transformers' loss over the rows that we train: an export may have more, for the image token."""
    rows = step.params["llm/embed/embedding"].shape[0]
    labels = inputs(step.batch, model.config.image_token_id)["labels"]
    logits = outputs(model, step.batch).logits[..., :rows]
    return float(model.loss_function(logits=logits, labels=labels, vocab_size=rows))


def difference(a, b) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def check(folder: Path, pair: Pair, mesh: Mesh, compared=range(STEPS)) -> dict[str, float]:
    """Trains and converts a pair in an empty folder. compared: the steps whose losses are compared. Returns the largest
    relative differences from transformers, by what is compared."""
    models = write_weights(folder, pair)
    with recorded_steps() as steps:
        loop.train(run_config(folder, pair), folder / "run", ["check_folder"])
    if command_line(["convert", str(folder / "run"), str(folder / "hf"), "--to", "hf"]):
        raise SystemExit("the run could not be converted")
    converted = LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    ours = llava_jax.load(folder / "hf", dtype="float32", mesh=mesh)
    # Its config is the pair's, not one that we wrote.
    theirs = LlavaForConditionalGeneration(pair.llava(converted.config.image_token_id, ours.config.llm.vocab_size))
    theirs.eval()
    differences = []
    for i in compared:
        step = steps[i]
        load_weights(theirs, folder / f"step{i}", step.params, ours.config)
        differences.append(difference(step.loss, their_loss(theirs, step)))
    results = {"losses": max(differences)}
    if pair.is_whole:  # the weights as transformers reads them, not as we write them
        results["first loss"] = difference(steps[0].loss, float(outputs(models["whole"], steps[0].batch).loss))
    theirs.load_state_dict(converted.state_dict())
    results["converted config"] = difference(outputs(converted, step.batch).logits, outputs(theirs, step.batch).logits)
    batch = inputs(step.batch, converted.config.image_token_id)
    logits = ours.logits(*(batch[key].numpy() for key in ("input_ids", "pixel_values", "attention_mask")))
    real = step.batch.segment_ids > 0
    results["logits"] = difference(logits[real], outputs(converted, step.batch).logits.numpy()[real])
    return results


def load_weights(model: LlavaForConditionalGeneration, folder: Path, params: dict, shapes: ModelConfig) -> None:
    """Sets the weights of a model to our parameters."""
    rows = params["llm/embed/embedding"].shape[0]  # before the export made room for the image token
    shapes = dataclasses.replace(shapes, llm=dataclasses.replace(shapes.llm, vocab_size=rows))
    save_hf(folder, params, shapes, open_tokenizer("tiny"), "float32")
    model.load_state_dict(LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PAIRS, help="one pair")
    parser.add_argument("--folder", type=Path, help="keeps the files here")
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        for name in [arguments.only] if arguments.only else PAIRS:
            folder = (arguments.folder or Path(temporary)) / name.replace(", ", "-").replace("/", "")
            folder.mkdir(parents=True)
            with contextlib.redirect_stdout(sys.stderr):
                results = check(folder, PAIRS[name], make_mesh(1, -1, 1))
            print(f"{name:18}" + "  ".join(f"{key} {value:.1e}" for key, value in results.items()), flush=True)
            worst = max(worst, *results.values())
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
