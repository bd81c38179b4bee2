"""An HTML page of the caption filter: phrase counts beside the paper's, and two plots."""

from collections.abc import Mapping

import numpy as np

from llava_jax.datagen.caption_filter import PUBLISHED_KEPT, PUBLISHED_PAIRS, PUBLISHED_PHRASES, Selection
from llava_jax.output.html_page import Markup, document, element, join
from llava_jax.output.page_parts import table, tile, tiles
from llava_jax.output.plots import FILL, INK, svg_plot

POINTS = 400  # of a curve


def phrase_rows(selections: Mapping[str, Selection], min_count: int) -> list[list[str]]:
    """The table of the phrase keys, with a heading and the published numbers as its last row."""
    rows = [["key", "unique phrases", f"in {min_count} captions or more", "pairs selected"]]
    for key, selection in selections.items():
        numbers = len(selection.counts), selection.kept, len(selection.rows)
        rows.append([key, *(f"{number:,}" for number in numbers)])
    return [*rows, ["CC3M, paper", f"{PUBLISHED_PHRASES:,}", f"{PUBLISHED_KEPT:,}", f"{PUBLISHED_PAIRS:,}"]]


def filter_page(
    title: str, key: str, selections: Mapping[str, Selection], captions: int, min_count: int, facts: Mapping[str, str]
) -> str:
    """Returns the page. key: that of the written selection. captions: the number of all. Needs matplotlib."""
    selection = selections[key]
    share = len(selection.rows) / captions
    summary = tiles(
        [
            tile("captions", f"{captions:,}"),
            tile("selected", f"{len(selection.rows):,}", f"{share:.1%} of the captions"),
            tile("unique phrases", f"{len(selection.counts):,}", f"by the key {key}"),
            tile("phrases kept", f"{selection.kept:,}", f"in {min_count} captions or more"),
        ]
    )
    plots = join(_frequencies(selection), _pool(selection), separator="\n")
    body = [
        element("h2", "Noun phrases by key"),
        table(phrase_rows(selections, min_count), "phrases and pairs by key"),
        element("p", "The paper does not say when two noun phrases are the same: three readings.", class_="note"),
        element("h2", f"Coverage by the key {key}"),
        element("div", plots, class_="grid", style="--card:26rem"),
    ]
    return document(title, body, label="caption filter", facts=facts, summary=summary)


def _frequencies(selection: Selection) -> Markup:
    """Like the paper's figure 7: the most frequent phrase at the left, before the filter and after it."""

    def draw(axes):
        lines = ((selection.counts, INK, "all captions"), (selection.selected_counts, FILL, "selected captions"))
        for counts, color, label in lines:
            counts = np.sort(counts[counts > 0])[::-1]
            ranks = _few(np.geomspace(1, len(counts), POINTS))
            axes.plot(ranks, counts[ranks - 1], color=color, label=f"{label}: {len(counts):,} phrases")
        axes.set(xscale="log", yscale="log", xlabel="phrase, the most frequent first", ylabel="captions with it")
        axes.legend(frameon=False)

    return svg_plot(draw, "Captions with each phrase")


def _pool(selection: Selection) -> Markup:
    def draw(axes):
        ranks = _few(np.linspace(1, selection.kept, POINTS))
        axes.plot(ranks, selection.pool[ranks - 1], color=FILL)
        axes.set(xlabel="phrases, from the rarest on", ylabel="pairs in the pool", ylim=(0, None))

    return svg_plot(draw, "Growth of the pool")


def _few(positions: np.ndarray) -> np.ndarray:
    return np.unique(positions.round().astype(int))
