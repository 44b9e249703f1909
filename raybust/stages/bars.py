"""Progress of long work: a tqdm bar on a terminal or in a notebook, else a line every ten seconds.

Work that takes less prints no line. Bars go to standard error, lines where the command's other
messages go.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

Echo = Callable[[str], None]
"""Prints one line for the user."""

_LINE_S = 10.0


def silent(text: str) -> None:
    """Prints nothing: the `Echo` of a call that is to be quiet."""


def progress_bar(total: int, what: str, echo: Echo, initial: int = 0) -> Any:
    """Returns a context manager that shows progress, with the methods `update`, `set_postfix_str`,
    `write` and `close` of tqdm.

    Args:
        total: how much there is to do; 0 if that is not known.
        what: is shown before the numbers.
        echo: prints a line; nothing is shown if it is `silent`.
        initial: how much of it is done.
    """
    if echo is not silent and not (sys.stderr.isatty() or _in_notebook()):
        return _Lines(total, what, echo, initial)
    from tqdm import tqdm

    return tqdm(
        total=total, initial=initial, desc=what, disable=echo is silent, leave=False,
        dynamic_ncols=True, bar_format=None if total else "{desc} {elapsed}",
    )  # fmt: skip


def span(seconds: float) -> str:
    """Returns a duration as 05:30 or 1:05:30."""
    from tqdm import tqdm

    return str(tqdm.format_interval(seconds))


class _Lines:
    """A bar for a pipe, a log file or a job: a thread prints a line every ten seconds."""

    def __init__(self, total: int, what: str, echo: Echo, initial: int) -> None:
        self._total, self._what, self._echo = total, what, echo
        self._done = self._initial = initial
        self._postfix = ""
        self._started = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._repeat, daemon=True).start()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, more: int) -> None:
        """Adds to what is done."""
        self._done += more

    def set_postfix_str(self, text: str, *, refresh: bool = True) -> None:
        """Sets what a line ends with."""
        self._postfix = text

    def write(self, text: str, file: TextIO) -> None:
        """Prints a line between those of the bar."""
        print(text, file=file, flush=True)

    def close(self) -> None:
        """Ends the lines."""
        self._closed.set()

    def _repeat(self) -> None:
        while not self._closed.wait(_LINE_S):
            self._echo(self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        count = f"{self._done} of {self._total} after " if self._total else ""
        words = [f"{self._what} {count}{span(seconds)}"]
        done, left = self._done - self._initial, self._total - self._done
        if done and left > 0:
            words.append(f"about {span(seconds * left / done)} left")
        return ", ".join([*words, *[self._postfix] * bool(self._postfix)])


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None
