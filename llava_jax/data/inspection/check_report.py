"""What a check found: in numbers, as JSON, and as one page with the pictures at fault."""

import dataclasses
import itertools
import json
from collections import Counter

from llava_jax.data.inspection.check import ERRORS, KINDS, Finding
from llava_jax.data.inspection.lenient_row import read_loosely
from llava_jax.output.html_page import document, element, table, thumbnail

SHOWN = 100  # findings of a kind on the page; the JSON has all of them


@dataclasses.dataclass
class Report:
    """`source`, `settings`: what was checked and how, in words. `images`: references in rows that were looked at."""

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
        """{kind: {part: findings}}, in the order of `KINDS`, without zeros."""
        found = Counter((finding.kind, finding.part) for finding in self.findings)
        parts = sorted({finding.part for finding in self.findings})
        counts = {kind: {part: found[kind, part] for part in parts if found[kind, part]} for kind in KINDS}
        return {kind: by_part for kind, by_part in counts.items() if by_part}

    def summary(self) -> list[list[str]]:
        """A table of text: kind, error or warning, how many, by part where there are several; heading first."""
        counts = self.counts()
        parts = sorted({part for by_part in counts.values() for part in by_part} - {""})
        rows = [["found", "", "count", *parts]]
        for kind, by_part in counts.items():
            severity = "error" if kind in ERRORS else "warning"
            rows.append([kind, severity, f"{sum(by_part.values()):,}", *(f"{by_part.get(p, 0):,}" for p in parts)])
        return rows

    def total(self) -> str:
        """One line: how much was looked at, and what came out."""
        verdict = f"{self.errors:,} errors, {self.warnings:,} warnings" if self.findings else "nothing found"
        return f"{self.rows:,} rows, {self.images:,} images: {verdict}"

    def to_json(self) -> str:
        about = {"source": self.source, "settings": self.settings, "rows": self.rows, "images": self.images}
        found = [
            {"severity": "error" if f.kind in ERRORS else "warning", **dataclasses.asdict(f)} for f in self.findings
        ]
        about |= {"errors": self.errors, "warnings": self.warnings, "counts": self.counts(), "findings": found}
        return json.dumps(about, indent=1) + "\n"

    def to_html(self, source) -> str:
        """One page without anything from elsewhere. Opens the images of the findings it shows, again from the source:
        the name in a finding opens nothing."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        body = [element("p", self.total()), element("p", settings), table(self.summary())]
        by_kind = itertools.groupby(sorted(self.findings, key=lambda f: list(KINDS).index(f.kind)), lambda f: f.kind)
        for kind, group in by_kind:
            findings = list(group)
            body += [element("h2", kind), element("p", KINDS[kind] + ".")]
            rows = [["image", "row", "id", "part", "what"]]
            for f in findings[:SHOWN]:
                image = read_loosely(source, f.row).images.get(f.image)
                rows.append([thumbnail(image, f.image or ""), str(f.row), f.id, f.part, f.message])
            body.append(table(rows))
            if len(findings) > SHOWN:
                body.append(element("p", f"{len(findings) - SHOWN:,} more are in report.json."))
        return document(f"check of {self.source}", body)
