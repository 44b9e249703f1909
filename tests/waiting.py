"""Waiting for what another process brings about, and the names of processes that may end."""

import contextlib
import time

import psutil

_SLOWER = 10
"""How much slower than a quiet machine a loaded one may be."""


def wait(condition, seconds, what):
    """Returns the first true value of a condition that a quiet machine meets in some seconds; fails
    where there is none in ten times as many."""
    deadline = time.monotonic() + _SLOWER * seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {_SLOWER * seconds} s: {what}"
        time.sleep(0.05)


def names(processes):
    """The name of each process by its id; one that has ended meanwhile is left out."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = process.name()
    return found
