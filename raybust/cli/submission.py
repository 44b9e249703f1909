"""Submits a command as a Ray job if its address is a jobs URL."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raybust.errors import RequestError
from raybust.request import compose

if TYPE_CHECKING:
    from raybust.config import Leaf


def runs_locally(address: str | None) -> bool:
    """Returns whether the command runs on this machine, not as a job of a jobs URL."""
    return address is None or not address.startswith(("http://", "https://"))


def load_ahead(address: str | None, dry_run: bool) -> None:
    """Imports MLflow beside the command's own imports, if the command will use it here."""
    if runs_locally(address) and not dry_run:
        from raybust import track

        track.engage()


def submitted(address: str | None, leaves: Sequence[Leaf], detach: bool = False) -> bool:
    """Submits this command as a job if the address is a jobs URL; returns whether it is one.

    Raises:
        RequestError: the job would write into its working directory, which Ray deletes.
    """
    if address is None or runs_locally(address):
        if detach:
            raise RequestError("--detach: needs an --address that is a jobs URL (http://...)")
        return False
    from raybust.cli.output import echo
    from raybust.cluster import jobs

    out = compose([leaf for leaf in leaves if leaf.key == "out"]).out
    if not out.startswith("/"):
        raise RequestError(
            f"out: got {out}, a folder that Ray deletes after the job; give an absolute path that"
            " all nodes share, such as --out /mnt/raybust/runs"
        )
    jobs.submit(address, sys.argv[1:], echo, detach=detach)
    return True
