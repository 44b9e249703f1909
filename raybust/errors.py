"""User errors (exit code 2), runtime failures (exit code 1), and spelling hints.

`RequestError` rejects a request before any work starts; `WorkError` reports work that failed later
and keeps what was done. Messages are one line: what was seen, what is allowed, how to fix it.
"""

from __future__ import annotations

import difflib
import re
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
    containing = [one for one in names if len(str(name)) > 3 and str(name) in one]
    close = containing[:2] or difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return RequestError(f"unknown {kind} '{name}'.{hint} Available: {', '.join(names)}.")


def cause_of(error: BaseException) -> str:
    """Returns the innermost message of nested errors, Ray's too, on one line."""
    failures = getattr(error, "worker_failures", None) or {}
    inner: BaseException = next(iter(failures.values()), error)
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = [line for line in str(inner).splitlines() if line.strip()]
    return (lines[-1].strip() if lines else type(inner).__name__)[:300]


def no_room(reason: str) -> bool:
    """Whether a failure was caused by a disk that is full, read-only or over quota."""
    return re.search(r"(?i)(errno|os error) (28|30|122)\b", reason) is not None


def with_advice(reason: str) -> str:
    """Returns a failure's reason, with what to do about a disk that took no more."""
    if not no_room(reason):
        return reason
    return f"{reason}; make room on that disk and rerun the same command to resume"


def why_failed(error: BaseException) -> str:
    """Returns why training failed, with what to do about a full disk."""
    return f"training failed: {with_advice(cause_of(error))}"


def task_error(error: BaseException) -> Exception:
    """Returns the error to raise for one that a task raised: ours as it is, others in one line."""
    if isinstance(error, (RequestError, WorkError)):
        return error
    text = " ".join(str(error).split())[:300]
    return WorkError(f"a task failed: {type(error).__name__}: {text}; finished work is kept")
