"""Floating point operations of a train step, counted from shapes."""

from llava_jax.config.architectures import ModelConfig


def model_flops(
    config: ModelConfig, sizes: dict[str, int], trained: set[str], rows: int, length: int, images: int
) -> float:
    """Model FLOPs of one step, without recomputation and with causal attention counted half.

    Per weight and token: 2 forward, 2 more for the gradient of the input if something before it trains, 2 more for the
    gradient of a trained weight. sizes: path -> number of weights. rows: rows per step. images: image slots per row.
    """
    v, m = config.vision, config.llm
    order = ("vision", "projector", "llm")
    tokens = {"vision": rows * images * (v.patches + 1), "projector": rows * images * v.features, "llm": rows * length}
    total = 0.0
    for path, size in sizes.items():
        module = path.split("/")[0]
        if "embedding" in path and not (path.startswith("llm/") and m.tied_head):
            continue  # a look-up, not a matmul
        if path.startswith("vision/layers/"):
            size = size * v.blocks_used // v.layers  # the blocks after the selected one never run
        needs_input_gradient = any(order.index(t.split("/")[0]) <= order.index(module) and t != path for t in trained)
        total += 2 * size * tokens[module] * (1 + needs_input_gradient + (path in trained))
    vision_attention = 2 * 2 * rows * images * (v.patches + 1) ** 2 * v.blocks_used * v.width
    total += vision_attention * (3 if any(p.startswith("vision/") for p in trained) else 1)
    llm_attention = 2 * 2 * rows * length * (length / 2) * m.layers * m.heads * m.head_size
    return total + llm_attention * (3 if trained else 1)
