"""`llava_jax.load`: loads a LLaVA or a language model of any supported format directly into device shards."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from llava_jax.api.arguments import brief_repr, check_path, dtype_name
from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.open_checkpoint import DTYPES, Checkpoint, check_option, open_checkpoint
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import ConfigError, renamed_keywords
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
    """Loads a model; its format is detected by content.

    path: a folder in Hugging Face's or the original LLaVA's format, the workdir of a run (its newest checkpoint), a
    folder that `save` wrote, or a language model alone as a folder or a GGUF file. dtype: float32 | bfloat16 | float16
    of the weights; None: as stored. Computes in bfloat16 if all weights are bfloat16, else in float32. tower, base,
    allow_pickle: see `open_parameters`. tokenizer: a file or folder that replaces the model's, or that it lacks.
    template: None: the run's own, or the one that renders as the model's chat template does, else vicuna_v1 (with a
    warning if the model has another). aspect: crop | pad; None: as in the model's own files. mesh: None: shards the
    weights over all devices. Raises DataError or ConfigError that names what is missing or does not match.
    """
    for value, name in ((path, "path"), (tower, "tower"), (base, "base"), (tokenizer, "tokenizer")):
        if value is not None or name == "path":
            check_path(value, name)
    dtype = dtype_name(dtype)
    if not isinstance(mesh, Mesh | None):
        raise ConfigError(f"mesh={brief_repr(mesh)} is not a jax.sharding.Mesh")
    mesh = mesh or make_mesh(1, -1, 1)
    check_option(dtype, (None, *DTYPES), "dtype")
    check_option(aspect, (None, "crop", "pad"), "aspect")
    if not isinstance(template, str | None):
        raise ConfigError(f"template={brief_repr(template)} is not the name of a template")
    find_template(template or "vicuna_v1")
    checkpoint = open_checkpoint(
        path, tower=tower, base=base, tokenizer=tokenizer, template=template, allow_pickle=allow_pickle
    )
    params, config = _read(checkpoint, dtype, mesh)
    return LlavaModel(
        config, params, mesh, checkpoint.tokenizer, checkpoint.template, aspect or checkpoint.aspect,
        checkpoint.image_token_id, checkpoint.source_info, checkpoint.wraps_images,
    )  # fmt: skip


def _read(checkpoint: Checkpoint, dtype: str | None, mesh: Mesh) -> tuple[Params, ModelConfig]:
    """Returns (parameters on the mesh, config that computes in their dtype)."""
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
