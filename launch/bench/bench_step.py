"""Compares our train step with that of transformers and torch: same weights, batch and trained parameters, on the CPU.

    python launch/bench/bench_step.py [--models tiny smollm2_135m] [--dtypes float32 bfloat16] [--stages 1 2]
    python launch/bench/bench_step.py --models smollm2_135m --scaling step.png

float32: everything in float32. bfloat16: trained weights in float32, products in bfloat16; torch computes under
autocast. Stage 1 trains the projector, stage 2 the projector and the language model; frozen weights are in the compute
dtype on both sides. Both clip by the global norm and step AdamW (torch's fused one). The two
sides alternate, so that other load on the machine affects both. torch runs with eager and with fused attention; the
faster one counts. If the losses of the first steps differ, the exit code is 1. `of peak`: model FLOPs (without
recomputation) per second, relative to the fastest product of two 2048 x 2048 matrices of this dtype on either side.

The first step of a turn is not counted: memory that the previous turn freed may have been returned by a virtual
machine, which then needs seconds to get it back. This also happens between steps of one side, as the kernel time of the
process shows. It affects us more than torch: XLA allocates all of a step's memory at once and frees it, torch keeps
small blocks.

--scaling plots our step time over sequence length and over rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

THREADS = 2
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # read when a process starts; both sides gain
if sys.platform == "linux" and HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", "") and __name__ == "__main__":
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": HUGE_PAGES})
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if hasattr(os, "sched_setaffinity"):  # XLA uses one thread per core
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch_step import TorchStep, make_model  # noqa: E402

from llava_jax.checkpoint.external import open_external  # noqa: E402
from llava_jax.config import Model, Optimizer, model_config  # noqa: E402
from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig  # noqa: E402
from llava_jax.models.flops import model_flops  # noqa: E402
from llava_jax.models.llava import Llava  # noqa: E402
from llava_jax.models.matmul import dot  # noqa: E402
from llava_jax.models.params import abstract_model  # noqa: E402
from llava_jax.runtime.mesh import make_mesh  # noqa: E402
from llava_jax.runtime.sharding import global_batch  # noqa: E402
from llava_jax.text.token_row import Batch  # noqa: E402
from llava_jax.train.optimizer import learning_rates_per_parameter, make_optimizer  # noqa: E402
from llava_jax.train.state import abstract_state, init_stage_state  # noqa: E402
from llava_jax.train.step import make_train_step  # noqa: E402

RATE = 1e-4
OPTIMIZER = Optimizer(warmup_ratio=0.0, schedule="constant")
SHAPES = {"tiny": ("tiny", "tiny"), "smollm2_135m": ("small_128", "smollm2_135m")}  # vision tower, language model
TABLES = {1: (("projector/.*", RATE), (".*", None)), 2: (("vision/.*", None), (".*", RATE))}
THEIRS = {1: ("model.multi_modal_projector",), 2: ("model.multi_modal_projector", "model.language_model", "lm_head")}
COMPARED = 3  # first steps, whose losses must agree
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative
TURN = 1.0  # minimum seconds of a turn of one side


def shapes_of(name: str, dtype: str, args) -> ModelConfig:
    vision, llm = SHAPES[name]
    options = dict(dtype=dtype, feature_dtype=dtype, remat=args.remat, unroll=args.unroll)
    return model_config(Model(vision, llm, "mlp2x_gelu", **options))


def make_batch(c: ModelConfig, rows: int, length: int) -> Batch:
    """Rows of one sample with an image after the first token; the second half are targets."""
    rng = np.random.default_rng(0)
    size = c.vision.image_size
    tokens = rng.integers(3, c.llm.vocab_size - 1, (rows, length), dtype=np.int32)
    tokens[:, 1 : 1 + c.features] = IMAGE_TOKEN_ID
    return Batch(
        tokens=tokens,
        target_mask=np.broadcast_to(np.arange(length) >= max(length // 2, 1 + c.features), tokens.shape).copy(),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        segment_ids=np.ones_like(tokens),
        images=rng.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8),
    )


class OurStep:
    """Runs one optimizer step per call, always on the same batch."""

    def __init__(self, c: ModelConfig, folder: Path, stage: int, chunks: int):
        self.mesh = make_mesh(1, 1, 1, jax.devices()[:1])
        shapes, _ = abstract_model(c)
        peak = learning_rates_per_parameter(shapes, TABLES[stage])
        trained = {path: rate for path, rate in peak.items() if rate is not None}
        tx = make_optimizer(OPTIMIZER, trained, 1000)
        abstract = abstract_state(c, peak, tx, self.mesh)
        params = open_external(folder).load({**abstract.frozen, **abstract.trainable})
        self.state = init_stage_state(params, jax.random.PRNGKey(0), abstract, tx)
        self.step = make_train_step(Llava(c), tx, abstract, 1, chunks)
        sizes = {path: math.prod(x.shape) for path, x in shapes.items()}
        self.flops = lambda rows, length: model_flops(c, sizes, set(trained), rows, length, 1)

    def set_batch(self, batch: Batch) -> None:
        self.batch = global_batch(batch, self.mesh)

    def __call__(self) -> float:
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.step(self.state, self.batch)
            return float(jax.block_until_ready((self.state, metrics))[1]["loss"])


def turn(step, calls: int) -> list[float]:
    """Returns the seconds of each of `calls` steps, after one that is not counted."""
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[1:]


def peak_flops(dtype: str) -> float:
    """Returns the FLOP/s of the fastest product of two 2048 x 2048 matrices, ours or torch's."""
    n, best = 2048, math.inf
    x = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    ours, theirs = jnp.asarray(x, dtype), torch.tensor(x).to(getattr(torch, dtype))
    product = jax.jit(lambda x: dot("ij,jk->ik", x, x, dtype))
    for _ in range(6):
        for run in (lambda: product(ours).block_until_ready(), lambda: theirs @ theirs):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def check_equal(losses: dict[str, list[float]], dtype: str, case: str) -> None:
    """Exits with an error if the losses of another side differ from ours."""
    for side, theirs in losses.items():
        if not np.allclose(theirs, losses["ours"], rtol=TOLERANCE[dtype], atol=0):
            sys.exit(f"error: {case}: the losses of the first steps differ, ours {losses['ours']}, {side} {theirs}")


def compare(name: str, dtype: str, stage: int, folder: Path, peak: float, args) -> float:
    """Prints one line of the table and returns the seconds of our step."""
    c = shapes_of(name, dtype, args)
    length = args.length or min(256, c.llm.max_positions)
    batch = make_batch(c, args.batch, length)
    sides = {"ours": OurStep(c, folder, stage, args.loss_chunks)}
    for attention in ("eager", "sdpa"):
        sides[attention] = TorchStep(folder, THEIRS[stage], dtype, args.remat != "none", attention, RATE)
    losses, calls = {}, {}
    for side, step in sides.items():
        step.set_batch(batch)
        losses[side] = [step() for _ in range(COMPARED)]
        calls[side] = max(2, round(TURN / turn(step, 1)[0]))
    check_equal(losses, dtype, f"{name} {dtype} stage {stage}")
    times = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, step in sides.items():
            times[side] += turn(step, calls[side])
    seconds = {side: statistics.median(durations) for side, durations in times.items()}
    theirs = min(("eager", "sdpa"), key=seconds.get)
    fastest = min(times["eager"] + times["sdpa"]) / min(times["ours"])
    tokens, flops = args.batch * length, sides["ours"].flops(args.batch, length)
    print(
        f"{name:12} {dtype:8} {stage:5}| {seconds['ours']:8.3f} {seconds['eager']:7.3f} {seconds['sdpa']:7.3f} | "
        f"{tokens / seconds['ours']:7.0f} {tokens / seconds[theirs]:7.0f} | "
        f"{seconds[theirs] / seconds['ours']:5.2f} {fastest:7.2f} | "
        f"{flops / seconds['ours'] / peak:4.0%} {flops / seconds[theirs] / peak:6.0%}",
        flush=True,
    )
    return seconds["ours"]


def tables(args) -> None:
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {THREADS} threads; {args.batch} rows of "
        f"{args.length or 256} tokens, remat {args.remat} on both sides, our unroll {args.unroll}\n"
        f"medians of the steps of {args.rounds} rounds; ratio: torch's faster median / ours, above 1 ours is faster\n"
        "fastest: ratio of the fastest steps, which other load on the machine affects least\n\n"
        "                           |    seconds of a step     |    tokens/s     | ratio fastest |  of peak\n"
        "model        dtype    stage|     ours   eager    sdpa |    ours  theirs |               | ours theirs"
    )
    for name in args.models:
        for dtype in args.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                make_model(shapes_of(name, dtype, args)).save_pretrained(folder)
                peak = peak_flops(dtype)
                ours = {stage: compare(name, dtype, stage, Path(folder), peak, args) for stage in args.stages}
            note = f"{name} {dtype}: peak {peak / 1e9:.0f} GFLOP/s"
            if ours.keys() == {1, 2}:
                note += f"; our stage-1 step takes {ours[1] / ours[2]:.2f} of the stage-2 step"
            print(f"{'':26} | {note}", flush=True)


def scaling(args) -> None:
    """Measures our step for several lengths and numbers of rows, prints the times and plots them."""
    from matplotlib.figure import Figure  # an optional dependency, only for the plot

    name, dtype = args.models[0], args.dtypes[0]
    c = shapes_of(name, dtype, args)
    lengths = [n for n in (64, 128, 256, 512) if n <= c.llm.max_positions]
    sweeps = {
        f"tokens of a row, {args.batch} rows": (lengths, lambda n: (args.batch, n)),
        "rows of 128 tokens": ([1, 2, 4, 8, 16], lambda n: (n, 128)),
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    with tempfile.TemporaryDirectory() as folder:
        make_model(c).save_pretrained(folder)
        steps = {stage: OurStep(c, Path(folder), stage, args.loss_chunks) for stage in args.stages}
        for axis, (label, (values, shape)) in zip(axes, sweeps.items(), strict=True):
            for stage, step in steps.items():
                times = []
                for value in values:
                    step.set_batch(make_batch(c, *shape(value)))
                    times.append(statistics.median(turn(step, args.rounds)))  # the first step compiles
                    print(f"{name} {dtype} stage {stage}, {value} {label}: {times[-1]:.3f} s", flush=True)
                axis.plot(values, times, "o-", label=f"stage {stage}")
                at = len(values) // 2
                axis.plot(values, [times[at] * v / values[at] for v in values], ":", color="gray")
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds of a step")
            axis.set_xticks(values, values)
            axis.xaxis.set_minor_formatter("")
            axis.legend(title="dotted: proportional")
    figure.suptitle(f"{name}, {dtype}, {THREADS} CPU threads")
    figure.savefig(args.scaling, dpi=120)
    print(f"plot written to {args.scaling}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2], choices=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--length", type=int, default=0, help="tokens per row, image tokens included; default: 256")
    parser.add_argument("--remat", default="none", choices=["none", "full"], help="on both sides")
    # In a loop, XLA for CPU converts all layers' saved activations to float32 and back whenever a layer adds one.
    parser.add_argument(
        "--unroll",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our model.unroll; default: on",
    )
    parser.add_argument("--loss-chunks", type=int, default=1, help="loss_chunks of our stage config")
    parser.add_argument("--scaling", metavar="FILE", help="plot the step of the first model and dtype instead")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    scaling(args) if args.scaling else tables(args)


if __name__ == "__main__":
    main()
