"""Eight CPU devices for every test, so that sharding is tested and not imagined; no network."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tests compile far more than they compute: these, and the two settings below, make compiling fast, programs slow.
# An XLA that no longer knows a flag says so and stops; then leave it out.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data: $LLAVA_JAX_REAL_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("LLAVA_JAX_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real data in {folder}; set LLAVA_JAX_REAL_DATA to a folder with tokenizers/ and captioned_images/"
        )
    return folder
