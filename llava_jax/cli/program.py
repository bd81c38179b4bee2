"""Runs a verb as a whole program: its streams, its signals, its exit code. Imports no library, so that Ctrl-C is
handled during the imports of the verb too."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from llava_jax.errors import UserError
from llava_jax.output.console import OutputLost, flush_output, log, prepare_console
from llava_jax.output.interrupts import Interrupt, end_at_once, exit_code_of, remove_partial_paths, stop_signals

PATIENCE = 2.0  # seconds for the main thread to end after a stop signal; it does not notice one while it compiles


def run_program(verb: Callable[[list[str]], int], argv: list[str]) -> NoReturn:
    """Ends the process with the exit code of `verb(argv)`, or with 128 plus the number of the signal that stopped it.

    A stop signal is raised in `verb` as Interrupt, which removes partial files. A train run handles the signals itself
    while it has something to save.
    """
    if sys.getfilesystemencoding() != "utf-8":
        # E.g. LC_ALL=C. Python could not open the images that UTF-8 files name, nor print their names.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides the compiler's start-up messages
    prepare_console()
    sys.unraisablehook = _hide_interrupt
    received: list[int] = []

    def stop(signum: int) -> NoReturn:
        received.append(signum)
        raise Interrupt(signum)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the verb, Ctrl-C needs no traceback
    try:
        with stop_signals(stop, PATIENCE):
            code = run_verb(verb, argv)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            received.append(exit_code_of(e) - 128)
        if not received:
            raise
        code = 128 + received[0]  # also where the signal made a library raise another exception
    if received and code:
        remove_partial_paths()
        # Not sys.exit: it waits for threads, and crashes where the signal interrupted the compiler.
        end_at_once(received[0])
    sys.exit(code)


def run_verb(verb: Callable[[list[str]], int], argv: list[str]) -> int:
    """Returns the exit code of `verb(argv)`. An error that a user can cause is one line on standard error."""
    try:
        try:
            return verb(argv)
        finally:
            flush_output()  # here, where errors are caught, and not when Python exits
    except UserError as e:
        log(f"error: {e}", to_stderr=True)
        return 1 if isinstance(e, OutputLost) else 2
    except BrokenPipeError:  # e.g. `| head`
        return 1


def _hide_interrupt(unraisable) -> None:
    """Python drops an interrupt that arrives in a callback of its garbage collector. `stop_signals` then ends the
    process after PATIENCE."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
