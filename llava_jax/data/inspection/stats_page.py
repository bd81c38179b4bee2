"""The numbers of `stats`, with plots, on one page."""

import io

import numpy as np

from llava_jax.data.inspection.stats import Stats
from llava_jax.errors import ConfigError
from llava_jax.output.html_page import Markup, document, element

BINS = 60


def check_matplotlib() -> None:
    """Raises ConfigError where there is no matplotlib: said before hours of reading, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'llava_jax[plots]', or leave out --page") from None


def stats_page(source: str, stats: Stats) -> str:
    """One HTML page, plots as SVG inside."""
    plots = [
        _histogram(stats.tokens, "tokens of a sample, images included", stats.length),
        _histogram(stats.target_share, "supervised tokens of a sample, %"),
        _histogram(stats.images, "images of a sample"),
    ]
    if len(stats.sizes):
        plots.append(_sizes(stats.sizes))
    padded, packed = stats.fullness()
    plots.append(_bars({"one sample a row": padded, "packed": packed}, f"tokens of a row of {stats.length} in use, %"))
    text = element("pre", "\n".join(stats.lines()))
    return document(f"statistics of {source}", [text, *plots])


def _svg(draw, title: str) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):  # equal data, equal file
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])


def _histogram(values: np.ndarray, title: str, limit: int | None = None) -> Markup:
    def draw(axes):
        is_count = values.dtype.kind == "i" and values.max() < BINS
        axes.hist(values, bins=np.arange(values.max() + 2) - 0.5 if is_count else BINS, rwidth=0.9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("samples")
        if limit is not None and limit <= 2 * values.max():
            axes.axvline(limit, color="tab:red", linewidth=1)

    return _svg(draw, title)


def _sizes(sizes: np.ndarray) -> Markup:
    def draw(axes):
        places, counts = np.unique(sizes, axis=0, return_counts=True)
        # As a picture: a dot for each of a million sizes would be a page of a hundred megabytes.
        axes.scatter(*places.T, s=4 + 20 * np.sqrt(counts / counts.max()), alpha=0.4, linewidths=0, rasterized=True)
        axes.set(xlabel="width", ylabel="height")

    return _svg(draw, "image sizes, pixels")


def _bars(values: dict[str, float], title: str) -> Markup:
    def draw(axes):
        bars = axes.barh(list(values), list(values.values()))
        axes.bar_label(bars, fmt="%.1f")
        axes.set_xlim(0, 110)

    return _svg(draw, title)
