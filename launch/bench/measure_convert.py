"""Measures memory and speed of `convert`: python launch/bench/measure_convert.py [--folder=/tmp] [--read]

Writes a random LLaVA of TinyLlama's shapes (1.1 billion parameters, bfloat16, a small CLIP tower) in four files,
converts it in a separate process, and prints the peak memory next to the size of the arrays. 1.3 times the largest file
plus 0.5 GB are allowed beyond the arrays. Also times reading, next to a plain read of the same files. The folder needs
5 GB, which are freed at the end. --read: only reads, with LLaMA-7B's shapes; needs 14 GB of memory and of disk.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

GB = 1e9
BOUND = 1.3, 0.5 * GB


def write_source(folder: Path, is_7b: bool) -> None:
    """Writes Hugging Face's format with repeated random values: only the sizes matter."""
    import jax.numpy as jnp
    import numpy as np

    from llava_jax.checkpoint.huggingface.export import save_hf
    from llava_jax.checkpoint.tokenizer import open_tokenizer
    from llava_jax.config.architectures import LlamaConfig, ModelConfig, VisionConfig
    from llava_jax.models.params import abstract_model

    vision = VisionConfig(
        image_size=224, patch_size=14, width=256, layers=6, heads=4, mlp_width=1024,
        activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
    )  # fmt: skip
    width, layers, kv_heads, head_size, mlp_width = (4096, 32, 32, 128, 11008) if is_7b else (2048, 22, 4, 64, 5632)
    llm = LlamaConfig(
        vocab_size=32_000, width=width, layers=layers, heads=32, kv_heads=kv_heads, head_size=head_size,
        mlp_width=mlp_width, norm_eps=1e-5, rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False,
        max_positions=2048,
    )  # fmt: skip
    config = ModelConfig(vision, llm, "mlp2x_gelu", "bfloat16", "bfloat16", "none", False, "xla")
    values = (0.02 * np.random.default_rng(0).standard_normal(1_000_003, np.float32)).astype(jnp.bfloat16)
    params = {p: np.resize(values, x.shape) for p, x in abstract_model(config)[0].items()}
    size = sum(x.nbytes for x in params.values())
    save_hf(folder, params, config, open_tokenizer("tiny"), "bfloat16", shard_bytes=int(size / 3.9))


# Both programs print their seconds. This one keeps the memory, as a reader of weights must; a
# virtual machine may provide memory more slowly than the disk provides bytes.
PLAIN = """
import sys, time
import numpy as np
began = time.perf_counter()
kept = [np.fromfile(file, np.uint8) for file in sys.argv[1:]]
print(time.perf_counter() - began)
"""
# Reads the arrays like `convert`, without writing.
READ = """
import pathlib, sys, time
from llava_jax.api.load import load
began = time.perf_counter()
model = load(pathlib.Path(sys.argv[1]).parent, dtype=None)
for x in model.params.values():
    x.block_until_ready()
print(time.perf_counter() - began)
"""


def drop_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through_buffer(files: list[Path]) -> float:
    """Returns the seconds to read the files through one buffer of 16 MB."""
    buffer = bytearray(1 << 24)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as f:
            while f.readinto(buffer):
                pass
    return time.perf_counter() - start


def read_in_subprocess(program: str, files: list[Path]) -> float:
    done = subprocess.run([sys.executable, "-c", program, *files], check=True, capture_output=True, encoding="utf-8")
    return float(done.stdout)


def peak_of(command: list[str]) -> tuple[int, float]:
    """Returns (peak resident bytes, seconds) of a process; exits if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, time.perf_counter() - start


def read_in_turns(files: list[Path]) -> tuple[float, float, float]:
    """Returns the median seconds of three reads from disk: through a buffer, into memory, into arrays."""
    readers = read_through_buffer, partial(read_in_subprocess, PLAIN), partial(read_in_subprocess, READ)
    seconds = []
    for _ in range(3):
        for reader in readers:
            drop_cache(files)
            seconds.append(reader(files))
    drop_cache(files)
    return tuple(statistics.median(seconds[i::3]) for i in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="folder of the files; default: the temporary folder")
    parser.add_argument("--to", default="llava", choices=("hf", "llava", "orbax"))
    parser.add_argument("--read", action="store_true", help="only read, with 7B shapes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        src, dst = Path(temporary) / "src", Path(temporary) / "dst"
        write = [sys.executable, __file__, "--write", str(src), *["7b"] * args.read]
        subprocess.run(write, check=True)  # a separate process, so that its memory does not count
        files = sorted(src.glob("*.safetensors"))
        sizes = [file.stat().st_size for file in files]
        print(f"source: {len(files)} files, {sum(sizes) / GB:.2f} GB, the largest {max(sizes) / GB:.2f} GB")
        buffered, plain, ours = read_in_turns(files)
        rates = [sum(sizes) / seconds / 1e6 for seconds in (buffered, plain, ours)]
        print("read through a buffer: {:.0f} MB/s; into memory: {:.0f} MB/s; into arrays: {:.0f} MB/s".format(*rates))
        print(f"speed into arrays / speed into memory: {plain / ours:.2f}")
        if args.read:
            return
        base, _ = peak_of([sys.executable, "-c", "import jax, llava_jax.api.load; jax.devices()"])
        peak, seconds = peak_of([sys.executable, "-m", "llava_jax", "convert", str(src), str(dst), "--to", args.to])
    share, fixed = BOUND
    arrays = sum(sizes)  # each tensor keeps its dtype; headers are small
    excess, allowed = peak - arrays, share * max(sizes) + fixed
    print(f"destination arrays: {arrays / GB:.2f} GB; the program before reading: {base / GB:.2f} GB")
    print(
        f"peak of convert --to {args.to}: {peak / GB:.2f} GB in {seconds:.0f} s, {excess / GB:.2f} GB beyond the arrays"
    )
    print(f"allowed beyond them: 1.3 x {max(sizes) / GB:.2f} + 0.5 = {allowed / GB:.2f} GB")
    sys.exit("error: above the bound" if excess > allowed else 0)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # on CPU the arrays are in the measured memory
    if sys.argv[1:2] == ["--write"]:
        write_source(Path(sys.argv[2]), "7b" in sys.argv[3:])
    else:
        main()
