"""Compiles small programs with known properties, for TPUs that are not present.

    python tpu_programs.py FOLDER NAME ...   # without names all of them; FOLDER tests/planning/programs renews those

Writes FOLDER/NAME.txt: the optimised program without the parts that are not read, mostly notes of the compiler to
itself. It is a program of its own because libtpu needs its own process.
"""

import functools
import os
import re
import sys
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from llava_jax.planning.topologies import devices, parse_topology  # noqa: E402
from llava_jax.runtime.mesh import make_mesh  # noqa: E402

PLAIN = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
L, D, F, S = 4, 2048, 8192, 1024  # layers, width, MLP width, length of `gathers`


def mesh_of(name: str, data: int, fsdp: int, tensor: int = 1):
    return make_mesh(data, fsdp, tensor, devices(parse_topology(name)))


def array(mesh, shape, spec=(), dtype="bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def matmul():
    """One matmul, 2048 x 4096 x 4096, whose result replaces the left operand."""
    mesh = mesh_of("v5e:2x2", 4, 1)
    return jax.jit(jnp.matmul, donate_argnums=0).lower(array(mesh, (8192, 4096), ("data",)), array(mesh, (4096, 4096)))


def loops():
    """Ten times three matmuls, 1024 x 1024 x 1024."""
    mesh = mesh_of("v5e:2x2", 4, 1)

    def repeated(x, w):
        inner = lambda x, _: (jnp.tanh(x @ w).astype(x.dtype), None)  # noqa: E731
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=3)[0] + 1, None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=10)[0]

    return jax.jit(repeated).lower(array(mesh, (4096, 1024), ("data",)), array(mesh, (1024, 1024)))


def collectives():
    """One of each kind over groups of four of 16 chips, and an all-reduce over all."""
    mesh = mesh_of("v5e:4x4", 4, 1, 4)

    def moves(a, b, c, d, e):
        return (
            jax.lax.all_gather(a, "tensor", tiled=True),
            jax.lax.psum(b, "tensor"),
            jax.lax.psum(b, ("data", "tensor")),
            jax.lax.psum_scatter(c, "data", tiled=True),
            jax.lax.all_to_all(d, "tensor", 0, 1, tiled=True),
            jax.lax.ppermute(e, "data", [(i, (i + 1) % 4) for i in range(4)]),
        )

    specs = dict(
        in_specs=(P("tensor"), P(), P(), P(), P()), out_specs=(P(), P(), P(), P("data"), P(None, "tensor"), P())
    )
    mapped = jax.jit(jax.shard_map(moves, mesh=mesh, **specs, check_vma=False))
    b = array(mesh, (1024, 1024), dtype="float32")
    c, d, e = (array(mesh, shape) for shape in ((2112, 2048), (1024, 4096), (512, 1024)))
    return mapped.lower(array(mesh, (4096, 2048), ("tensor",)), b, c, d, e)


def layers(mesh, w, x, policy=None):
    """An MLP of L layers in one loop, each layer recomputed for the backward pass."""

    def layer(x, w):
        h = jax.ad_checkpoint.checkpoint_name(x, "x") @ w["up"].astype(x.dtype)
        y = x + h @ w["down"].astype(x.dtype)
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("fsdp"))), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer, policy=policy), x, w)[0].astype(jnp.float32) ** 2)


def weights(mesh) -> dict[str, jax.ShapeDtypeStruct]:
    up, down = (None, "fsdp"), (None, None, "fsdp")
    return {"up": array(mesh, (L, D, F), up, "float32"), "down": array(mesh, (L, F, D), down, "float32")}


def gathers():
    """The layers forward; weights over fsdp in float32 are cast before they are gathered."""
    mesh = mesh_of("v5e:4x4", 1, 16)
    with jax.set_mesh(mesh):
        return jax.jit(functools.partial(layers, mesh)).lower(weights(mesh), array(mesh, (32, S, D), ("fsdp",)))


def offload():
    """Forward and backward on one chip, the inputs of the layers kept on the host."""
    mesh = mesh_of("v5e:1x1", 1, 1)
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["x"], offload_src="device", offload_dst="pinned_host"
    )
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(functools.partial(layers, mesh, policy=policy)))
        return gradient.lower(weights(mesh), array(mesh, (2, S, D), ("fsdp",)))


def attention():
    """Splash attention and its gradient: two rows per chip, eight heads of 256, two key heads, 1024 tokens."""
    mesh = mesh_of("v5e:2x2", 1, 4)
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((S, S))] * 8)
    blocks = dict.fromkeys(("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), 512)
    sizes = splash.BlockSizes(**blocks, block_kv_dkv_compute=512, use_fused_bwd_kernel=True)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("fsdp"),) * 3, out_specs=P("fsdp"), check_vma=False)
    def attend(q, k, v):
        return jax.vmap(splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes))(q, k, v)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v).astype(jnp.float32) ** 2)

    q, k = (array(mesh, (8, heads, S, 256), ("fsdp",)) for heads in (8, 2))
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k)


PROGRAMS = {
    "matmul": (matmul, PLAIN),
    "loops": (loops, PLAIN),
    "collectives": (collectives, PLAIN),
    "gathers": (gathers, PLAIN),
    "offload": (offload, PLAIN),
    "windowed": (gathers, {}),  # too long to save
    "attention": (attention, PLAIN),
}
READ = r'"estimated_cycles":"\d+"|"async_collective_fusion_config":\{[^}]*\}|"known_trip_count":\{[^}]*\}'
NAMED = r"(?! *(?:ROOT )?\S+ = \S.* (?:custom-call|parameter)\()"  # names of other instructions are not read


def cut(text: str) -> str:
    """The same program without source lines, signatures, and most of what the compiler wrote into strings."""
    text = re.sub(r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", "\n", text)
    text = re.sub(r", backend_config=(\{.*\})$", lambda m: _config(m[1]), text, flags=re.M)
    text = re.sub(r", frontend_attributes=\{kernel_metadata=\{\n.*?\n\}\}", "", text)
    text = re.sub(rf"^{NAMED}(.*), metadata=\{{[^}}]*\}}", r"\1", text, flags=re.M)
    text = re.sub(r"^((?:ENTRY )?%\S+) \(.*\{$", r"\1 () -> () {", text, flags=re.M)
    return re.sub(r" stack_frame_id=\d+|, (?:frontend_attributes|arg_layout_modes)=\{[^}]*\}|\n(?=\n)", "", text)


def _config(config: str) -> str:
    kept = re.findall(READ, config)
    return f", backend_config={{{','.join(kept)}}}" if kept else ""


def main(folder: Path, *names: str) -> None:
    for name in names or PROGRAMS:
        lower, options = PROGRAMS[name]
        (folder / f"{name}.txt").write_text(cut(lower().compile(compiler_options=options).as_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
