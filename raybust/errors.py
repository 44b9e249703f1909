"""User errors (exit code 2), runtime failures (exit code 1), and spelling hints.

`RequestError` rejects a request before any work starts; `WorkError` reports work that failed later
and keeps what was done. Messages are one line: what was seen, what is allowed, how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request is invalid: a name, a key, a value, a missing file. Exit code 2.

    Args:
        problems: all problems, one string each; the message joins them into one line.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, ...]]:
        return type(self), self.problems


class WorkError(RuntimeError):
    """Work failed after it started. Exit code 1; the same command resumes it from disk."""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> RequestError:
    """Returns the error for an unknown name, with the nearest spelling and all valid names.

    Args:
        kind: what the name refers to, in the user's terms ("dataset", "key").
        name: what the user typed.
        allowed: the valid names.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return RequestError(f"unknown {kind} '{name}'.{hint} Available: {', '.join(names)}.")
