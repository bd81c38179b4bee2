"""The report of a check: counts, JSON, and an HTML page with the faulty images."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.data.inspection.check import ERRORS, KINDS, Finding
from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.images.thumbnail import thumbnail
from llava_jax.output.html_page import Markup, document, element, join, picture
from llava_jax.output.page_parts import badge, table, tile, tiles

SHOWN = 100  # findings of a kind on the page; the JSON has all


@dataclasses.dataclass
class Report:
    """The findings of a check. source, settings: what was checked, for readers. images: image references checked."""

    source: str
    settings: dict[str, object]
    rows: int = 0
    images: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(finding.kind in ERRORS for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns {kind: {part: number of findings}}, in the order of `KINDS`, without zeros."""
        counter = Counter((finding.kind, finding.part) for finding in self.findings)
        parts = sorted({finding.part for finding in self.findings})
        counts = {kind: {part: counter[kind, part] for part in parts if counter[kind, part]} for kind in KINDS}
        return {kind: by_part for kind, by_part in counts.items() if by_part}

    def summary(self) -> list[list[str]]:
        """Returns a text table, heading first: kind, error or warning, count, and counts by part if several."""
        counts = self.counts()
        parts = sorted({part for by_part in counts.values() for part in by_part} - {""})
        rows = [["found", "", "count", *parts]]
        for kind, by_part in counts.items():
            severity = "error" if kind in ERRORS else "warning"
            rows.append([kind, severity, f"{sum(by_part.values()):,}", *(f"{by_part.get(p, 0):,}" for p in parts)])
        return rows

    def total(self) -> str:
        """Returns one line: what was checked, and the number of errors and warnings."""
        verdict = f"{self.errors:,} errors, {self.warnings:,} warnings" if self.findings else "nothing found"
        return f"{self.rows:,} rows, {self.images:,} images: {verdict}"

    def to_json(self) -> str:
        report = {"source": self.source, "settings": self.settings, "rows": self.rows, "images": self.images}
        findings = [
            {"severity": "error" if f.kind in ERRORS else "warning", **dataclasses.asdict(f)} for f in self.findings
        ]
        report |= {"errors": self.errors, "warnings": self.warnings, "counts": self.counts(), "findings": findings}
        return json.dumps(report, indent=1) + "\n"

    def to_html(self, source, facts: Mapping[str, str] | None = None) -> str:
        """Returns a self-contained HTML page; images are read again from the source, as findings only name them. facts:
        further entries of the header, by name."""
        settings = {key: str(value) for key, value in self.settings.items()}
        summary = [
            tile("rows", f"{self.rows:,}"),
            tile("images", f"{self.images:,}"),
            tile("errors", f"{self.errors:,}", "stop or mislead a run", tone="bad" if self.errors else ""),
            tile("warnings", f"{self.warnings:,}", "do not fail the check", tone="warn" if self.warnings else ""),
        ]
        by_kind = {kind: [f for f in self.findings if f.kind == kind] for kind in self.counts()}
        body = [self._table() if by_kind else element("p", self.total())]
        for kind, findings in by_kind.items():
            head = [element("h2", kind, id=_anchor(kind)), element("p", KINDS[kind] + ".", class_="note")]
            body += [*head, _findings(source, kind, findings[:SHOWN])]
            if len(findings) > SHOWN:
                body.append(element("p", f"{len(findings) - SHOWN:,} more are in report.json.", class_="more"))
        contents = [(_anchor(kind), kind, f"{len(findings):,}") for kind, findings in by_kind.items()]
        return document(
            f"check of {self.source}", body, label="data check", facts=settings | dict(facts or {}),
            summary=tiles(summary), contents=contents,
        )  # fmt: skip

    def _table(self) -> Markup:
        """Returns `summary` with links to the findings."""
        head, *rows = self.summary()
        linked = [head]
        for kind, severity, *counts in rows:
            tone = "bad" if severity == "error" else "warn"
            linked.append([element("a", kind, href=f"#{_anchor(kind)}"), badge(severity, tone), *counts])
        return table(linked, "findings by kind")


def _anchor(kind: str) -> str:
    return "found-" + kind.replace(" ", "-")


def _findings(source, kind: str, findings: Sequence[Finding]) -> Markup:
    """Returns cards with images, or a table if no finding has a readable image."""
    pictures = [_picture(source, finding) for finding in findings]
    if not any(pictures):
        rows = [[str(f.row), f.id, f.part, f.message] for f in findings]
        return table([["row", "id", "part", "what"], *rows], kind)
    cards = []
    for finding, thumbnail_markup in zip(findings, pictures, strict=True):
        where = join(*(element("span", text) for text in (f"row {finding.row}", finding.id, finding.part) if text))
        column = element("div", join(element("p", finding.message), element("div", where, class_="meta")))
        if thumbnail_markup:
            column = element(
                "div",
                join(element("div", thumbnail_markup, class_="images"), column),
                class_="with-image small",
                style="--image:5rem",
            )
        cards.append(element("article", column))
    return element("div", join(*cards, separator="\n"), class_="grid")


def _picture(source, finding: Finding) -> Markup:
    small = thumbnail(read_leniently(source, finding.row).images.get(finding.image), finding.image or "")
    return picture(small, Path(finding.image).name) if small else Markup()
