"""Plots of HTML pages: SVG by matplotlib, in the colors of the page. matplotlib is an optional dependency."""

import io
from collections.abc import Callable

from llava_jax.errors import ConfigError
from llava_jax.output.html_page import Markup, element, join

# matplotlib cannot use CSS variables: it draws in these colours, which are then replaced by variables of the page.
INK, LINE, FILL, LIMIT = "#010203", "#010204", "#010205", "#010206"
COLORS = {INK: "var(--muted)", LINE: "var(--line)", FILL: "var(--fill)", LIMIT: "var(--bad)"}


def check_matplotlib() -> None:
    """Raises ConfigError without matplotlib; to be called before hours of reading."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'llava_jax[plots]', or leave out --page") from None


def svg_plot(draw: Callable, title: str) -> Markup:
    """Returns a plot as SVG under a heading, a few kilobytes of text; the same data gives the same bytes.

    draw: receives the axes of matplotlib; colors it may use are INK, LINE, FILL and LIMIT.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which has global state and a window system

    style = {
        "svg.hashsalt": title, "svg.fonttype": "none",  # the same data gives the same file
        "axes.edgecolor": LINE, "axes.labelcolor": INK, "text.color": INK, "xtick.color": LINE, "ytick.color": LINE,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": LINE, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in COLORS.items():
        svg = svg.replace(color, variable)
    return element("figure", join(element("h3", title), Markup(svg)), class_="plot")
