"""Console output: log lines and progress, and what to do where a console cannot show or receive them."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llava_jax.errors import UserError, harmless

LOG_INTERVAL = 10  # seconds between two progress lines


class OutputLost(UserError):
    """Standard output cannot be written, e.g. because a disk is full (exit code 1)."""


def prepare_console() -> None:
    """Makes the standard streams of a program usable, whatever started it.

    A character that a stream cannot encode becomes a question mark, and so do invalid bytes of the input. Text from a
    file or pipe is UTF-8, like all files; a terminal has the encoding of its locale. A closed stream becomes /dev/null:
    otherwise the next file that is opened would get its number, and be overwritten by what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")


def log(message: object, *, to_stderr: bool = False) -> None:
    """Prints a message without control characters (see `errors.harmless`) and flushes.

    Results go to standard output; warnings, errors and notes go to standard error (`to_stderr`). Raises as
    `flush_output` does; where standard error is lost, its messages are dropped.
    """
    if to_stderr:
        try:
            print(harmless(message), file=sys.stderr, flush=True)
        except OSError:
            _discard(sys.stderr)
    else:
        print_output(f"{harmless(message)}\n")


def print_output(text: str) -> None:
    """Prints `text` as it is to standard output. Raises as `flush_output` does."""
    with _checked_output():
        print(text, end="", flush=True)


def log_until_lost(log: Callable[[str], None], on_lost: Callable[[], None], text: str) -> None:
    """Calls `log(text)`; `on_lost()` where standard output is lost, e.g. with its terminal, which a long run must
    survive to save its work."""
    try:
        log(text)
    except (BrokenPipeError, OutputLost):
        on_lost()


def flush_output() -> None:
    """Writes what is still in the buffer of standard output. Raises BrokenPipeError where its reader has ended (`| head
    -1`), OutputLost where it cannot be written for another reason. Later output is dropped."""
    print_output("")


@contextmanager
def _checked_output() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        _discard(sys.stdout)
        if isinstance(e, BrokenPipeError):
            raise
        raise OutputLost(f"standard output cannot be written: {e.strerror or e}") from None


def _discard(stream) -> None:
    """Sends the stream to /dev/null: Python writes its buffer again at exit, and would report the error again."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
