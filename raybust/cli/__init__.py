"""The command line: parses, delegates, prints. Slow modules are imported inside commands.

`commands`, `use`, `compare` and `inspection` have one function per command, `output` prints. Exit
codes: 0 success, 1 failure, 2 invalid request, 130 interrupted (the same command resumes).
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence

import click

from raybust.cli import commands, compare, inspection, use
from raybust.cli.group import Command, cli
from raybust.cli.output import printable
from raybust.errors import RequestError, WorkError, with_advice

__all__ = ["cli", "commands", "compare", "inspection", "main", "use"]


_GC_THRESHOLD = 50_000
"""Allocations per garbage collection: imports allocate a lot and leave no garbage."""

_RESEND_AFTER_S = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    hook, sys.unraisablehook = sys.unraisablehook, _resend_interrupt
    gc.set_threshold(_GC_THRESHOLD)
    atexit.register(gc.freeze)  # avoids a final collection that takes seconds
    code = 0
    try:
        _check_place()
        cli.main(args=arguments, prog_name="raybust", standalone_mode=False)
    except RequestError as error:
        code = _print_error(error, 2)
    except click.NoSuchOption as error:
        code = _print_error(_no_option(error), 2)
    except click.ClickException as error:
        code = _print_error(error.format_message(), 2)
    except WorkError as error:
        code = _print_error(error, 1)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the user typed the name
            code = _print_error(f"{error.filename}: is too long for a file name", 2)
        else:
            code = _print_error(with_advice(str(error)), 1)
    except (KeyboardInterrupt, click.Abort):
        code = _print_error("interrupted; rerun the same command to resume", 130)
    finally:
        sys.unraisablehook = hook
    sys.exit(code)


def _check_place() -> None:
    """Rejects a working directory that is gone, in which libraries abort."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RequestError(
            "the working directory is gone; change to a folder that exists (`cd`)"
        ) from None


def _resend_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Resends a Ctrl-C that hit a finalizer and would otherwise be lost; as a signal to the main
    thread, which also ends a system call that waits."""
    if unraisable.exc_type is KeyboardInterrupt:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(_RESEND_AFTER_S, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _no_option(error: click.NoSuchOption) -> str:
    """Returns what to say of an unknown option: the settings that it spells, if any."""
    from raybust.cli.keys import meant_by

    command = error.ctx and error.ctx.command
    sections = command.sections if isinstance(command, Command) else ()
    if sections and (keys := meant_by(error.option_name, sections)):
        meant = " or ".join(f"{key}=VALUE" for key in keys)
        return f"No such option '{error.option_name}'. Settings are key=value; write {meant}"
    return error.format_message()


def _print_error(text: object, code: int) -> int:
    click.echo(printable(f"raybust: {' '.join(str(text).split())}"), err=True)
    return code
