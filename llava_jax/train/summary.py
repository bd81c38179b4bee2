"""The summary at the start of a stage: the parameter table and one training sample."""

import math

from jax.sharding import PartitionSpec

from llava_jax.text.spans import split_row
from llava_jax.text.token_row import TokenRow
from llava_jax.train.state import TrainState


def parameter_table(state: TrainState, rates: dict[str, float | None]) -> list[str]:
    """One line per parameter: path, shape, dtype, peak learning rate or `frozen`, sharding (the mesh axis of each array
    axis, `-` for none); then the totals. state: abstract or concrete."""
    params = {**state.frozen, **state.trainable}
    rows = [("parameter", "shape", "dtype", "trained at", "sharding")]
    for path, x in sorted(params.items()):
        rate = "frozen" if rates[path] is None else f"{rates[path]:g}"
        rows.append((path, "x".join(map(str, x.shape)) or "scalar", str(x.dtype), rate, _format_spec(x.sharding.spec)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    trained = sum(math.prod(x.shape) for x in state.trainable.values())
    total = sum(math.prod(x.shape) for x in params.values())
    return [*lines, f"{total:,} parameters, {trained:,} trained ({100 * trained / total:.2f}%)"]


def _format_spec(spec: PartitionSpec) -> str:
    names = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in spec]
    return ", ".join(names) if any(spec) else "replicated"


def render_sample(row: TokenRow, tokenizer) -> str:
    """A row as text, with targets between [[ and ]], and runs of image placeholders as <image x N>."""
    text = "".join(f"[[{piece.text}]]" if piece.is_target else piece.text for piece in split_row(row, tokenizer))
    real, targets = int((row.segment_ids > 0).sum()), int(row.target_mask.sum())
    return f"{text}\n({real} tokens, {targets} of them supervised, in a row of {len(row.tokens)})"
