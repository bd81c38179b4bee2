"""An HTML page of the statistics of `stats`, with plots."""

from collections.abc import Mapping

import numpy as np

from llava_jax.data.inspection.stats import Stats
from llava_jax.output.html_page import Markup, document, element, join
from llava_jax.output.page_parts import share_bar, table, tile, tiles
from llava_jax.output.plots import FILL, LIMIT, svg_plot

BINS = 60
DOTS = "#7088e0"  # of the rasterized plot, which CSS cannot change; visible in light and dark mode


def stats_page(source: str, stats: Stats, facts: Mapping[str, str] | None = None) -> str:
    """Returns the HTML page, with embedded SVG plots. facts: further entries of the header, by name."""
    plots = [
        _histogram(stats.tokens, "tokens of a sample, images included", stats.length),
        _histogram(stats.target_share, "supervised tokens of a sample, %"),
        _histogram(stats.images, "images of a sample"),
    ]
    if len(stats.sizes):
        plots.append(_sizes(stats.sizes))
    notes = element("ul", join(*(element("li", note) for note in stats.notes())), class_="note")
    body = [
        element("h2", "Of a sample"),
        table(stats.rows(), "mean and percentiles of each measure"),
        notes,
        element("h2", "Distributions"),
        element("div", join(*plots, separator="\n"), class_="grid", style="--card:26rem"),
    ]
    return document(f"statistics of {source}", body, label="data statistics", facts=facts, summary=_summary(stats))


def _summary(stats: Stats) -> Markup:
    tokens, targets = int(stats.tokens.sum()), int(stats.targets.sum())
    cut, percent = int((stats.tokens > stats.length).sum()), 100 * targets / tokens
    padded, packed = stats.fullness()
    summary = [
        tile("samples", f"{len(stats.tokens):,}"),
        tile("tokens", f"{tokens:,}", f"{tokens / len(stats.tokens):,.0f} a sample"),
        tile("images", f"{stats.images.sum():,}"),
        tile("longer than a row", f"{cut:,}", f"truncated to {stats.length:,} tokens", tone="warn" if cut else ""),
        tile("rows that cannot be read", f"{stats.broken:,}", tone="bad" if stats.broken else ""),
        tile("supervised", f"{percent:.1f}%", f"{targets:,} tokens", bar=share_bar(percent)),
        tile("rows in use, one sample each", f"{padded:.1f}%", f"of {stats.length:,} tokens", bar=share_bar(padded)),
        tile("rows in use, packed", f"{packed:.1f}%", f"up to {stats.max_images:,} images", bar=share_bar(packed)),
    ]
    return tiles(summary)


def _histogram(values: np.ndarray, title: str, limit: int | None = None) -> Markup:
    def draw(axes):
        is_count = values.dtype.kind == "i" and values.max() < BINS
        axes.hist(values, bins=np.arange(values.max() + 2) - 0.5 if is_count else BINS, rwidth=0.9, color=FILL)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("samples")
        if limit is not None and limit <= 2 * values.max():
            axes.axvline(limit, color=LIMIT, linewidth=1)

    return svg_plot(draw, title)


def _sizes(sizes: np.ndarray) -> Markup:
    def draw(axes):
        points, counts = np.unique(sizes, axis=0, return_counts=True)
        area = 4 + 20 * np.sqrt(counts / counts.max())
        # Rasterized: as SVG, a million dots would be a page of a hundred megabytes.
        axes.scatter(*points.T, s=area, alpha=0.4, linewidths=0, rasterized=True, color=DOTS)
        axes.set(xlabel="width", ylabel="height")

    return svg_plot(draw, "image sizes, pixels")
