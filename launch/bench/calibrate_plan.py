"""Measures the error of the estimates of `plan`: python launch/bench/calibrate_plan.py [--only=NAME,...] [--hlo=FOLDER]

Compiles our train step with the shapes, slices and settings of training runs with published step times, and prints the
estimate next to them. The model has a vision tower of one block, whose cost is negligible. Needs libtpu (no TPU) and
one to five minutes per run. --hlo: saves the compiled programs and reuses those that exist.

How comparable a run is:
* Shapes, rows per chip, length, recomputation, attention blocks and compiler options are the publishers'. Activations
  that they offload to the host we offload too, and both count that as free.
* They also save the layer input and the output projection (`offload`), or other products (`save_dot_except_mlpwi`); we
  use the nearest policy that we have. Each row names it.
* Their compiler is older: JAX 0.4.x to 0.6.
* Published times include what an estimate omits: the host, stragglers, and memory contention between kernels.
"""

import argparse
import dataclasses
import os
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

from llava_jax.config import Data, Optimizer, Stage  # noqa: E402
from llava_jax.config.architectures import LLM, VISION, LlamaConfig, ModelConfig  # noqa: E402
from llava_jax.models import attention  # noqa: E402
from llava_jax.planning import topologies  # noqa: E402
from llava_jax.planning.estimate import estimate  # noqa: E402
from llava_jax.planning.lower import lower_step  # noqa: E402
from llava_jax.runtime.compilation import compiler_options  # noqa: E402
from llava_jax.runtime.mesh import make_mesh  # noqa: E402
from llava_jax.train.stages import make_stage_layout  # noqa: E402

ALLOWED = 0.20
# 98304 KiB of the 131072 KiB vector memory per kernel, instead of 16384: larger matmul tiles.
VMEM = {"xla_tpu_scoped_vmem_limit_kib": "98304"}


@dataclasses.dataclass(frozen=True)
class Run:
    topology: str
    llm: LlamaConfig
    rows: int  # per chip
    length: int
    remat: str
    block: int  # tokens per block of the attention kernel
    options: dict[str, str]
    seconds: float  # per step, published
    source: str


def _llama(width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, vocab_size: int) -> LlamaConfig:
    return dataclasses.replace(
        LLM["llama2_7b"], width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_size=128,
        mlp_width=mlp_width, vocab_size=vocab_size, max_positions=8192,
    )  # fmt: skip


RUNS = {
    "16b": Run(
        "v5e:16x16", _llama(4096, 32, 64, 64, 28_672, 32_000), 6, 2048, "full", 512, {}, 10.3,
        "MaxText configs/v5e/16b.sh (global_parameter_scale 16), 120 TFLOP/s a chip counting full attention",
    ),
    "8b": Run(
        "v6e:2x4", LLM["llama3_8b"], 3, 8192, "offload_qkv", 2048, VMEM, 3.443,
        "tpu-recipes Llama3.1-8B-MaxText/v6e-8; theirs offloads the layer's input and output projection too",
    ),
    "8b-full": Run(
        "v6e:2x4", LLM["llama3_8b"], 3, 8192, "full", 2048, VMEM, 3.443, "the same run; ours recomputes q, k and v",
    ),
    "70b": Run(
        "v5p:8x8x8", _llama(8192, 80, 64, 8, 28_672, 32_000), 4, 4096, "save_qkv_context", 512, {}, 4 * 4096 / 692,
        "MaxText tiering.md, 692 tokens/s a chip; save_dot_except_mlpwi keeps the output projection, not the context",
    ),
}  # fmt: skip


def compile_run(run: Run, mesh) -> str:
    vision = dataclasses.replace(VISION["clip_l14_224"], layers=1, select_layer=-1)
    model = ModelConfig(
        vision=vision, llm=run.llm, projector="linear", dtype="bfloat16", feature_dtype="bfloat16",
        remat=run.remat, unroll=False, attention="splash",
    )  # fmt: skip
    attention.BLOCK = run.block
    stage = Stage(
        data=Data(length=run.length, max_images=1), optimizer=Optimizer(), batch=run.rows * mesh.size,
        learning_rates=(("vision/.*", None), (".*", 1e-4)), weights="sharded",
        loss_chunks=8 if run.llm.vocab_size > 100_000 else 1,  # unchunked logits would not fit
    )  # fmt: skip
    lowered = lower_step(stage, model, make_stage_layout("calibrate", stage, model, mesh, steps=1000))
    return lowered.compile(compiler_options=compiler_options("tpu", 1) | run.options).as_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(RUNS)}")
    parser.add_argument("--hlo", type=Path, help="folder of saved programs")
    args = parser.parse_args()
    print(f"{'run':8}  {'slice':10} published   estimated          ratio        within {ALLOWED:.0%}")
    for name in args.only.split(",") if args.only else RUNS:
        run, topology = RUNS[name], topologies.parse_topology(RUNS[name].topology)
        mesh = make_mesh(1, -1, 1, topologies.devices(topology))
        file = args.hlo / f"{name}.txt" if args.hlo else None
        if file and file.exists():
            text = file.read_text(encoding="utf-8")
        else:
            text = compile_run(run, mesh)
            if file:
                file.write_text(text, encoding="utf-8")
        estimated = estimate(text, topology, [device.coords for device in mesh.devices.flat])
        low, high = estimated.lower / run.seconds, estimated.upper / run.seconds
        fits = "yes" if abs(low - 1) <= ALLOWED or abs(high - 1) <= ALLOWED or low <= 1 <= high else "no"
        print(
            f"{name:8}  {run.topology:10} {run.seconds:6.2f} s  {estimated.lower:6.2f} - {estimated.upper:5.2f} s  "
            f"{low:5.2f} - {high:4.2f}  {fits:4} {run.source}",
            flush=True,
        )
        parts = ("matmul", "other", "attention", "exposed", "hidden", "memory")
        print("          " + ", ".join(f"{part} {getattr(estimated, part):.2f}" for part in parts))


if __name__ == "__main__":
    main()
