"""Processes that share one gloo process group, as `raybust.testing` starts them."""

from raybust.testing import run_ranks

__all__ = ["run_ranks"]
