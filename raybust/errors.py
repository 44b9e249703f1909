"""The two ways in which raybust says no, and the nearest-spelling hint that goes with the first.

`RequestError` is for what the user asked (exit code 2: nothing was begun), `WorkError` for work
that failed after it had begun (exit code 1: what was done is kept). Both are one line: what was
seen, what is allowed, how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request is wrong: a name, a key, a value, a file that is not there. Exit code 2.

    Args:
        problems: all that is wrong, one text each; the message joins them into one line.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, ...]]:
        return type(self), self.problems


class WorkError(RuntimeError):
    """The work had begun and failed. Exit code 1; the same command resumes from what is on disk."""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> RequestError:
    """Returns the error for a name that does not exist: nearest spelling first, then all that is
    allowed.

    Args:
        kind: what is named, as the user would say it ("dataset", "key").
        name: what the user wrote.
        allowed: the names that exist.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return RequestError(f"unknown {kind} '{name}'.{hint} There is: {', '.join(names)}.")
