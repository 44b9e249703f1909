"""Waiting for what another process brings about."""

import time


def wait(condition, seconds, what):
    """Returns the first true value of a condition; fails where there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
