"""Eight CPU devices for every test, so that sharding is tested and not imagined; no network."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# The tests compile far more than they compute; unoptimised programs compile in a third of the time.
jax.config.update("jax_disable_most_optimizations", True)

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
