"""Console output: log lines and progress."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llava_jax.errors import harmless

LOG_INTERVAL = 10  # seconds between two progress lines


def log(message: object, *, to_stderr: bool = False) -> None:
    """Prints a message without control characters (see `errors.harmless`) and flushes.

    Results go to standard output; warnings, errors and notes go to standard error (`to_stderr`).
    """
    print(harmless(message), file=sys.stderr if to_stderr else sys.stdout, flush=True)


@contextmanager
def progress(verb: str, noun: str = "", total: int | None = None, initial: int = 0) -> Iterator[Callable[..., None]]:
    """Shows progress on standard error: a bar on a terminal, otherwise a line every LOG_INTERVAL seconds.

    Yields a function of the number of finished items, and of the total if `total` is None. verb, noun: the text around
    the numbers ("checked", "rows"). initial: items that an earlier process finished; the rate ignores them.
    """
    from rich.console import Console  # slow to import; --help does not need it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console, started = Console(stderr=True), time.monotonic()
    columns = TextColumn(f"{verb} {noun}".strip()), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    last_logged = started

    def report_progress(count: int, total: int | None = total) -> None:
        nonlocal last_logged
        now = time.monotonic()
        rate = (count - initial) / max(now - started, 1e-9)
        left = int((total - count) / rate) if rate > 0 else 0
        pace = f"{rate:.2f} a second, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        bar.update(task, completed=count, total=total, description=pace)
        if not console.is_terminal and now - last_logged > LOG_INTERVAL:
            last_logged = now
            log(f"{verb} {count:,} of {total:,}{noun and ' ' + noun}, {pace}", to_stderr=True)

    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, completed=initial)
        yield report_progress
