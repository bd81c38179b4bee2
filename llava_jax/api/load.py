"""`llava_jax.load`: a LLaVA from anything, or a language model alone, its weights read straight into the shards of the
devices at hand."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.open_checkpoint import DTYPES, Checkpoint, check_option, open_checkpoint
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import renamed_keywords
from llava_jax.models.params import Params, abstract_model
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import param_sharding
from llava_jax.text.templates import find_template


@renamed_keywords(pickles_allowed="allow_pickle")
def load(
    path: str | Path, *, dtype: str | None = "bfloat16", tower: str | Path | None = None,
    base: str | Path | None = None, tokenizer: str | Path | None = None, template: str | None = None,
    aspect: str | None = None, allow_pickle: bool = False, mesh: Mesh | None = None,
) -> LlavaModel:  # fmt: skip
    """A model from a folder of Hugging Face's LLaVA or of the original's, the workdir of a run (its newest checkpoint),
    or what `save` wrote; or a language model alone, from a folder or a GGUF file. Its content decides.

    dtype: float32 | bfloat16 | float16, of the weights; None: each as its file has it. Arithmetic is in bfloat16 where
    all of them are, else in float32. tower, base, allow_pickle: see `open_parameters`. tokenizer: where the folder has
    none, or another one. template: None for what the run says, chatml where the model's own chat template is, else
    vicuna_v1. aspect: crop | pad; None takes what the folder's own files say. mesh: None spreads the weights over all
    devices. Raises DataError or ConfigError that name what is missing or does not fit.
    """
    mesh = mesh or make_mesh(1, -1, 1)
    check_option(dtype, (None, *DTYPES), "dtype")
    check_option(aspect, (None, "crop", "pad"), "aspect")
    find_template(template or "vicuna_v1")
    checkpoint = open_checkpoint(path, tower=tower, base=base, tokenizer=tokenizer, allow_pickle=allow_pickle)
    params, config = _read(checkpoint, dtype, mesh)
    return LlavaModel(
        config, params, mesh, checkpoint.tokenizer, template or checkpoint.template, aspect or checkpoint.aspect,
        checkpoint.image_token_id, checkpoint.source_info, checkpoint.wraps_images,
    )  # fmt: skip


def _read(checkpoint: Checkpoint, dtype: str | None, mesh: Mesh) -> tuple[Params, ModelConfig]:
    """(parameters on the mesh, config that computes in their dtype)."""
    config = checkpoint.config
    shapes, specs = abstract_model(config)
    dtypes = dict.fromkeys(shapes, dtype) if dtype else checkpoint.parameters.dtypes(shapes)
    specs = {
        path: jax.ShapeDtypeStruct(x.shape, dtypes[path], sharding=param_sharding(path, x.shape, specs[path], mesh))
        for path, x in shapes.items()
    }
    computes_in = "bfloat16" if set(dtypes.values()) == {"bfloat16"} else "float32"
    config = dataclasses.replace(config, dtype=computes_in, feature_dtype=computes_in)
    return checkpoint.parameters.load(specs), config
