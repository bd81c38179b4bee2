"""Compares prefill and greedy decoding with transformers: same random weights, same prompts, two CPU threads.

    python launch/bench/measure_generate.py [--rounds 5] [--new 32] [--length 256]

The model is a LLaVA of SmolLM2-135M's shapes with a small CLIP tower; a prompt is one image and text. Both sides
alternate, so that other load on the machine affects both. The table has medians and their ratios (above 1: ours is
faster). Needs `pip install -e '.[test]'`.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
THREADS = 2
if hasattr(os, "sched_setaffinity"):  # XLA uses one thread per core
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_jax.checkpoint.external import open_external  # noqa: E402
from llava_jax.config.architectures import IMAGE_TOKEN_ID, LLM  # noqa: E402
from llava_jax.inference.decode import decode, decode_view, prefill  # noqa: E402
from llava_jax.inference.engine import BatchShape, Prompt, padded_rows, prompt_batch  # noqa: E402
from llava_jax.inference.sampling import SamplingParams  # noqa: E402
from llava_jax.models.llava import Llava  # noqa: E402
from llava_jax.models.params import abstract_model, nested  # noqa: E402
from llava_jax.runtime.mesh import make_mesh  # noqa: E402
from llava_jax.text.token_row import Batch  # noqa: E402
from llava_jax.train.state import abstract_state  # noqa: E402

SIZE, PATCH = 112, 14
IMAGE_TOKEN = 49_151
NO_STOP = np.full(8, -1, np.int32)


def make_theirs() -> LlavaForConditionalGeneration:
    c = LLM["smollm2_135m"]
    llm = LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_positions, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3, image_size=SIZE,
        patch_size=PATCH,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=clip, text_config=llm, image_token_index=IMAGE_TOKEN, image_seq_length=(SIZE // PATCH) ** 2
    )
    return LlavaForConditionalGeneration(config).eval()


def make_ours(folder: Path, dtype: str):
    """Returns (model, decode view) of the checkpoint in the folder."""
    source = open_external(folder)
    config, mesh = source.model(dtype), make_mesh(1, 1, 1)
    frozen = dict.fromkeys(abstract_model(config)[0])
    params = source.load(abstract_state(config, frozen, optax.identity(), mesh).frozen)
    return Llava(config), decode_view(nested(params))


def prompts(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """ids int64[batch, length] with an image near the front, pixels float32[batch, 3, SIZE, SIZE]."""
    rng = np.random.default_rng(batch)
    ids = rng.integers(10, 49_000, (batch, length))
    ids[:, 4 : 4 + (SIZE // PATCH) ** 2] = IMAGE_TOKEN
    return ids, rng.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)


def run_theirs(model, ids, pixels, new: int) -> tuple[float, float, np.ndarray]:
    """Returns (seconds of prefill and first token, seconds of `new` more tokens, all new ids)."""
    times = []

    def clock(ids, scores, **_):
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    config = GenerationConfig(max_new_tokens=new + 1, do_sample=False, pad_token_id=0, eos_token_id=None)
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), generation_config=config,
            stopping_criteria=[clock],
        )  # fmt: skip
    return times[0] - start, times[-1] - times[0], out[:, ids.shape[1] :].numpy()


def run_ours(model, view, batch: Batch, rows: int, new: int) -> tuple[float, float, np.ndarray]:
    zeros = np.zeros(rows, np.uint32)
    sampling = SamplingParams(zeros.astype(np.float32), zeros.astype(np.int32), np.ones(rows, np.float32), zeros, zeros)
    start = time.perf_counter()
    state = prefill(model, view, batch, sampling, NO_STOP, np.full(rows, new + 1, np.int32), new + 1)
    jax.block_until_ready(state)
    middle = time.perf_counter()
    state = decode(model, view, state, np.int32(new), np.zeros(rows, bool))
    answer = np.asarray(state.answer)
    return middle - start, time.perf_counter() - middle, answer


def ours_batch(ids, pixels, rows: int) -> Batch:
    """The same prompts, padded with empty rows to `rows`, as in `generate`."""
    tokens = np.where(ids == IMAGE_TOKEN, IMAGE_TOKEN_ID, ids)
    images = np.asarray(pixels.transpose(0, 2, 3, 1), np.float32)
    prompts = [Prompt(row, image[None]) for row, image in zip(tokens, images, strict=True)]
    return prompt_batch(prompts, BatchShape(rows, ids.shape[1], 1), SIZE)


def measure(folder: Path, theirs, dtype: str, batch: int, args) -> str:
    """One line of the table."""
    theirs = theirs.to(getattr(torch, dtype))
    ids, pixels = prompts(batch, args.length)
    their_inputs = torch.tensor(ids), torch.tensor(pixels).to(getattr(torch, dtype))
    model, view = make_ours(folder, dtype)
    rows = padded_rows(batch, dtype, None)
    our_inputs = ours_batch(ids, pixels, rows)
    run_theirs(theirs, *their_inputs, 2)
    run_ours(model, view, our_inputs, rows, args.new)  # compiles
    runs = {"theirs": [], "ours": []}
    for _ in range(args.rounds):
        runs["theirs"].append(run_theirs(theirs, *their_inputs, args.new))
        runs["ours"].append(run_ours(model, view, our_inputs, rows, args.new))
    same = np.mean(runs["ours"][0][2][:batch] == runs["theirs"][0][2])
    (their_prefill, their_decode), (our_prefill, our_decode) = (
        [statistics.median(run[part] for run in runs[side]) for part in (0, 1)] for side in ("theirs", "ours")
    )
    size = 2 if dtype == "bfloat16" else 4
    c = model.config.llm
    block = c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_size + 3 * c.width * c.mlp_width
    weights = c.layers * block + c.vocab_size * c.width
    cache = 2 * c.layers * c.kv_heads * c.head_size * (args.length + args.new // 2) * batch
    moved = size * (weights + cache) * args.new / 1e9
    work = 2 * c.layers * block * batch * args.length / 1e9
    return (
        f"{dtype:9} {batch:5} | {batch * args.new / our_decode:7.1f} {batch * args.new / their_decode:7.1f} "
        f"{their_decode / our_decode:6.2f} {moved / our_decode:6.1f} {moved / their_decode:6.1f} | "
        f"{batch * args.length / our_prefill:7.0f} {batch * args.length / their_prefill:7.0f} "
        f"{their_prefill / our_prefill:6.2f} {work / our_prefill:6.0f} {work / their_prefill:6.0f} | {same:5.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=32, help="tokens per answer")
    parser.add_argument("--length", type=int, default=256, help="tokens per prompt, 64 of them image tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    theirs = make_theirs()
    head = (
        f"jax {jax.__version__}, torch {torch.__version__}, {THREADS} threads; {args.length} tokens a prompt, "
        f"{args.new} an answer; medians of {args.rounds} rounds\n\n"
        "                |   decode, tokens/s          GB/s       |   prefill, tokens/s       GFLOP/s      | same\n"
        "dtype     batch |    ours  theirs  ratio   ours theirs |    ours  theirs  ratio   ours theirs | tokens"
    )
    print(head, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for dtype in args.dtypes:
            for batch in args.batches:
                print(measure(Path(folder), theirs, dtype, batch, args), flush=True)
    print(
        "\nGB/s: weights and KV cache that a step must read once, per second; near the memory bandwidth, that is the\n"
        "bound. GFLOP/s: matrix products of the blocks; the rest is not counted."
    )


if __name__ == "__main__":
    main()
