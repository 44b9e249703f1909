"""How much of a journal has been delivered: the acknowledged offset, in a file next to the journal.

The file is replaced atomically after each success. If it is lost or does not match the journal or
the store, delivery restarts at the first line, which is harmless because the store deduplicates.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ack:
    """How far a journal was delivered.

    Attributes:
        store: the store's URI without its password; a different store restarts delivery.
        identity: of the store, see `store_identity`; another one at the URI restarts delivery.
        began: time of the journal's first entry; a different journal restarts delivery.
        run_id: MLflow's id of the run, "" while there is none.
        offset: bytes of the journal that were delivered, not counting files.
        pending: offsets of earlier entries whose files have yet to be uploaded.
    """

    store: str
    began: int
    run_id: str = ""
    offset: int = 0
    pending: tuple[int, ...] = ()
    identity: str = ""

    def done(self, size: int) -> bool:
        """Returns whether a journal of `size` bytes has been fully delivered."""
        return self.offset >= size and not self.pending


def ack_path(journal: Path) -> Path:
    """Returns the acknowledgment's file."""
    return journal.with_name(journal.name + ".ack")


def rejected_path(journal: Path) -> Path:
    """Returns the file of items that MLflow rejected permanently."""
    return journal.with_name(journal.name + ".rejected")


def load_ack(journal: Path) -> Ack | None:
    """Returns the acknowledgment, or None if there is no valid one."""
    try:
        ack = Ack(**json.loads(ack_path(journal).read_text()))
        size = journal.stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return dataclasses.replace(ack, pending=tuple(ack.pending)) if ack.offset <= size else None


def save_ack(journal: Path, ack: Ack) -> None:
    """Replaces the acknowledgment atomically."""
    target = ack_path(journal)
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    draft.write_text(json.dumps(dataclasses.asdict(ack)))
    draft.replace(target)


def record_rejected(journal: Path, what: dict[str, Any], reason: str) -> None:
    """Appends a rejected item and the reason to the file of rejected items."""
    line = json.dumps({"t": int(time.time() * 1000), **what, "reason": reason})
    with rejected_path(journal).open("a") as file:
        file.write(line + "\n")
