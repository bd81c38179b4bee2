"""Compiles train steps of a small model for TPUs, without a TPU. It is a program because libtpu needs its own process.

    python plan_programs.py FOLDER

Writes FOLDER/facts.json: properties of each compiled step. For 7B and 13B use `python -m llava_jax plan`.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}

from llava_jax.cli.config_flags import read_command_line  # noqa: E402
from llava_jax.planning import lint, topologies  # noqa: E402
from llava_jax.planning.hlo import flops  # noqa: E402
from llava_jax.planning.hlo import parse as hlo
from llava_jax.planning.search import compile_stage  # noqa: E402

ROOT = Path(__file__).parents[2]
LENGTH = 384  # tokens of a row; differs from every size of the model
ROWS = 8  # with accumulation one row a chip; more rows take much longer to compile
STEPS = {  # name: (topology, stage, settings)
    "stage1": ("v5e:2x2", "stage1", ["--config.stages.stage1.weights=sharded"]),
    "stage2": ("v5e:2x2", "stage2", ["--config.stages.stage2.weights=sharded"]),
    "accumulating": (
        "v5e:2x2", "stage2", ["--config.stages.stage2.weights=sharded", "--config.stages.stage2.accumulation=2"]
    ),
    "copied": ("v6e:2x2", "stage1", []),
}  # fmt: skip


def main(folder: Path) -> None:
    facts = {}
    for name, (topology, stage, settings) in STEPS.items():
        flags = [f"--config={ROOT}/configs/quickstart.py", "--config.model.dtype=bfloat16"]
        flags += ["--config.model.feature_dtype=bfloat16", "--config.model.remat=full"]
        flags += ["--config.model.unroll=False", f"--config.stages.{stage}.batch={ROWS}"]  # a loop, as on any TPU
        flags += [f"--config.stages.{stage}.data.length={LENGTH}", *settings]
        config, *_ = read_command_line(["plan", *flags], lambda table: None)
        result = compile_stage(config, stage, topologies.parse_topology(topology), 0)
        program = hlo.parse_program(result.program)
        square = lint.largest_square(program, LENGTH)
        facts[name] = {
            "mesh": result.mesh,
            "slowed_by": result.slowed_by,
            "kernels": len(flops.kernels(program)[0]),
            "windowed": lint.has_windowed_einsum(program),
            "square": square and [square.dtype, *square.shape],
            "float32_gathers": [str(op.payload) for op in lint.float32_gathers(program, 2**15)],
            "reduced": sorted({"x".join(map(str, a.shape)) for op in lint.reductions(program) for a in op.payload}),
            "sent": sorted({c["kind"] for c in result.communication}),
            "not_aliased": sorted(lint.not_aliased(program)),
            "trainable": result.trainable,
            "arguments": result.arguments * 2**30,
        }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
