"""Recognizes quantised weights, which are not read: by the names and dtypes of their tensors, and by config.json."""

import re

from llava_jax.checkpoint.torch_tensors.dialects import POSITIONS
from llava_jax.checkpoint.torch_tensors.overlays import TensorReader
from llava_jax.checkpoint.torch_tensors.safetensors_reader import FLOATS
from llava_jax.errors import DataError

# End of a tensor's name -> methods that write it.
MARKS = {
    r"absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|weight_format": "bitsandbytes",
    r"g_idx": "GPTQ",
    r"qweight|qzeros|scales": "AWQ or GPTQ",
    r"weight_packed|weight_zero_point|weight_shape|weight_g_idx": "compressed-tensors",
    r"weight_scale(_inv|_2)?|input_scale|activation_scale": "fp8 or compressed-tensors",
    r"\w+_(blocks|scales)": "mxfp4",
    r"codes|codebooks": "aqlm",
}


def refuse_quantized(files: TensorReader, config: dict, where: str, described: bool = True) -> None:
    """Raises DataError for quantised weights; it names their method and what to use instead.

    described: whether `config` (the content of `where`) is about these files. With LoRA and `base` it is not: a run on
    a quantised base leaves its settings there, and the base read here may be the unquantised one.
    """
    settings = next((s for c in (config, config.get("text_config")) if (s := _settings(c))), {})
    method = settings.get("quant_method") or next((key for key in settings if key.startswith("load_in_")), None)
    remedy = "use the unquantised release of the model"
    for name in files.names():
        written_by = next((who for mark, who in MARKS.items() if re.search(rf"\.({mark})$", name)), None)
        dtype = files.dtype(name)
        if written_by or dtype not in FLOATS.values() and not re.fullmatch(POSITIONS, name):
            detail = f"tensor {name} of {dtype}" + ("" if method or not written_by else f", as {written_by} writes")
            kind = f" ({method})" if method else ""
            raise DataError(f"{files.path} holds quantised weights{kind}: {detail}; {remedy}")
    if settings and described:
        raise DataError(
            f"{where}: quantization_config says that the weights are quantised ({method or 'no method'}); {remedy}, or "
            "remove the setting if they are not"
        )


def _settings(config: object) -> dict:
    keys = ("quantization_config", "compression_config")
    found_settings = [config.get(key) for key in keys] if isinstance(config, dict) else []
    return next((s for s in found_settings if isinstance(s, dict) and s), {})
