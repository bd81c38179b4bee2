"""Results of `python -m llava_jax plan` as text: one result in full, several as a table."""

import dataclasses
import json
from pathlib import Path

from llava_jax.errors import ConfigError
from llava_jax.planning.search import Result

MIN_SPEEDUP = 1.8  # on twice the chips; with less, more than a tenth of the chip-hours is lost


def describe_result(r: Result, price: float) -> list[str]:
    """The lines that describe a result in full. price: dollars per chip-hour, 0 if unknown."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in r.mesh.items())
    settings = ", ".join(f"{name} {value}" for name, value in r.settings.items())
    lines = [f"{r.what} of {r.model} on {r.topology}: {r.chips} chips, {mesh}; {settings}"]
    rows: list[tuple[str, str]] = []
    if not r.fits:
        rows.append(("DOES NOT FIT", f"lacks {r.lacking:.2f} GiB of memory per chip, which has {r.limit:.2f}"))
    if r.tried:
        rows.append(("tried", "; ".join(r.tried)))
    if r.changes:
        rows.append(("needs" if r.fits else "not enough", " ".join(r.changes)))
    if r.fits:
        rows += [*_size(r), *_time(r), *_whole_run(r, price)]
    if r.slowed_by:
        rows.append(("slowed by", "; ".join(r.slowed_by)))
    return lines + [f"  {name:15} {text}" for name, text in rows]


def _size(r: Result) -> list[tuple[str, str]]:
    trained = f", {r.trainable:,} trained" if r.trainable else ""
    return [
        ("parameters", f"{r.parameters:,}{trained}"),
        (
            "memory per chip",
            f"{r.peak:.2f} of {r.limit:.2f} GiB, {r.limit - r.peak:.2f} to spare "
            f"(arguments {r.arguments:.2f}, temporaries {r.temporaries:.2f})",
        ),
    ]


def _time(r: Result) -> list[tuple[str, str]]:
    p = r.parts
    lines = []
    if r.model_flops:
        ratio = f"{r.hardware_flops / r.model_flops:.2f} times the model's"
        lines.append(("FLOPs per step", f"{r.model_flops:.3g} of the model, {r.hardware_flops:.3g} in all, {ratio}"))
    sent = [f"{c['kind']} {c['dtype']} {c['how']} {c['bytes'] / 2**30:.2f} GiB" for c in r.communication]
    lines.append(("sent per chip", ", ".join(sent) or "nothing"))
    lines.append((
        "time per step",
        f"{_span(r.low, r.high)} s: matmuls {p['matmul']:.4g}, other {p['other']:.4g}, attention kernels "
        f"{p['attention']:.4g}, exposed communication {p['exposed']:.4g}, asynchronous communication {p['hidden']:.4g} "
        f"(memory alone: {p['memory']:.4g})",
    ))  # fmt: skip
    if r.model_flops:
        lines.append(
            ("MFU", f"{r.model_flops / r.peak_flops / r.high:.3f} to {r.model_flops / r.peak_flops / r.low:.3f}")
        )
    speed = f"{_span(r.tokens / r.high / r.chips, r.tokens / r.low / r.chips)} tokens/s per chip"
    return [*lines, ("speed", f"{speed}, {_span(r.rows / r.high, r.rows / r.low)} rows/s")]


def _whole_run(r: Result, price: float) -> list[tuple[str, str]]:
    if not r.model_flops:
        return []
    lines = []
    if r.steps:
        low, high = (r.steps * seconds / 3600 for seconds in (r.low, r.high))
        cost = f", {_span(low * r.chips * price, high * r.chips * price)} dollars" if price else ""
        chip_hours = _span(low * r.chips, high * r.chips)
        lines.append((f"{r.steps:,} steps", f"{_span(low, high)} h, {chip_hours} chip-hours{cost}"))
    return [*lines, ("twice the chips", twice(r))]


def twice(r: Result) -> str:
    """The speedup of twice the chips for the same batch, as text, from the parts of this result. Computation halves;
    communication stays, because weights and gradients keep their size."""
    rows = r.rows // r.settings["accumulation"]
    if rows % (2 * r.mesh["data"] * r.mesh["fsdp"]):
        return f"cannot split {rows} rows: only a larger batch can use them"
    sent_low, sent_high = r.parts["exposed"], r.parts["exposed"] + r.parts["hidden"]
    faster = (r.low + r.high) / ((r.low - sent_low) / 2 + sent_low + (r.high - sent_high) / 2 + sent_high)
    verdict = "worth it" if faster >= MIN_SPEEDUP else "more chips do not help at this batch; a larger batch would"
    return f"about {faster:.2f} times as fast for {2 / faster:.2f} times the chip-hours: {verdict}"


def results_table(results: list[Result], price: float) -> list[str]:
    """One line per result, below a header."""
    head = ["", "model", "slice", "chips", "GiB of", "step, s", "MFU", "tok/s/chip", "hours", "needs"]
    if price:
        head.insert(-1, "dollars")
    lines = [head]
    for r in results:
        line = [r.what, r.model, r.topology, str(r.chips)]
        if not r.fits:
            line += [f"+{r.lacking:.2f} {r.limit:.2f}", *["-"] * (5 if price else 4), "does not fit"]
            lines.append(line)
            continue
        ideal = r.model_flops / r.peak_flops
        mfu = f"{ideal / r.high:.3f}-{ideal / r.low:.3f}" if ideal else "-"
        hours = [r.steps * seconds / 3600 for seconds in (r.low, r.high)]
        line += [
            f"{r.peak:.2f} {r.limit:.2f}", _span(r.low, r.high), mfu,
            _span(r.tokens / r.high / r.chips, r.tokens / r.low / r.chips), _span(*hours) if r.steps else "-",
        ]  # fmt: skip
        if price:
            line.append(_span(*(h * r.chips * price for h in hours)) if r.steps else "-")
        lines.append([*line, " ".join(c.removeprefix("--config.") for c in r.changes) or "fits"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _span(low: float, high: float) -> str:
    """`1.94-2.20`, or one number where both are formatted the same; three significant digits."""
    texts = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (low, high)]
    return texts[0] if texts[0] == texts[1] else "-".join(texts)


def append(path: Path, results: list[Result]) -> None:
    """Appends one line of JSON per result, without its program. Raises ConfigError where `path` cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            for result in results:
                values = dataclasses.asdict(result)
                del values["program"]
                file.write(json.dumps(values) + "\n")
    except OSError as e:
        raise ConfigError(f"--json={path} cannot be written ({e.strerror}); choose another path") from None


def read_results(path: Path) -> list[Result]:
    """Reads what `append` wrote; of results with equal what, model, topology and settings, the newest. Raises
    ConfigError where the file cannot be read or holds something else."""
    results = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--json={path} cannot be read ({e}); choose another path") from None
    for number, line in enumerate(lines, start=1):
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            raise ConfigError(f"{path}:{number} is no result of a plan; choose another file") from None
        key = result.what, result.model, result.topology, json.dumps(result.settings, sort_keys=True)
        results.pop(key, None)
        results[key] = result
    return list(results.values())
