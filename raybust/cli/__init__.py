"""The command line: parses, delegates, prints. Everything slow is imported inside a command.

`commands` has one function a command, `request` turns what was typed into leaves and runs, `output`
prints. Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted (the same
command resumes).
"""

from __future__ import annotations

import _thread
import atexit
import errno
import gc
import sys
import threading
from collections.abc import Sequence

import click

from raybust.cli.commands import cli
from raybust.cli.output import printable
from raybust.errors import RequestError, WorkError

__all__ = ["cli", "main"]


_OBJECTS = 50_000
"""New objects between two collections: what is imported makes many and leaves no garbage."""

_AGAIN_S = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    hook, sys.unraisablehook = sys.unraisablehook, _again
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)  # else all that lives is searched for garbage once more: seconds
    code = 0
    try:
        cli.main(args=arguments, prog_name="raybust", standalone_mode=False)
    except RequestError as error:
        code = _complain(error, 2)
    except click.ClickException as error:
        code = _complain(error.format_message(), 2)
    except WorkError as error:
        code = _complain(error, 1)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # whoever met it: it is what was typed
            code = _complain(f"{error.filename}: is too long for the name of a file", 2)
        else:
            code = _complain(error, 1)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted; the same command resumes", 130)
    finally:
        sys.unraisablehook = hook
    sys.exit(code)


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a Ctrl-C again that met a finalizer, which raises nothing: it would be lost."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(_AGAIN_S, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def _complain(text: object, code: int) -> int:
    click.echo(printable(f"raybust: {' '.join(str(text).split())}"), err=True)
    return code
