"""What of a journal has arrived: the acknowledged offset, kept beside the journal.

In the arrow: track, delivery's memory. The file is replaced as a whole after each success; where it
is lost or does not fit the journal or the store, delivery begins again at the first line, which the
store's own record makes harmless.
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
        store: the store's URI without its password; another store begins again.
        began: time of the journal's first entry; another journal at the same path begins again.
        run_id: MLflow's id of the run, "" while there is none.
        offset: bytes of the journal that were delivered, files apart.
        pending: offsets of the entries before it whose files are still to be uploaded.
    """

    store: str
    began: int
    run_id: str = ""
    offset: int = 0
    pending: tuple[int, ...] = ()

    def done(self, size: int) -> bool:
        """Tells whether all of a journal of that many bytes has arrived."""
        return self.offset >= size and not self.pending


def ack_path(journal: Path) -> Path:
    """Returns the file of the acknowledgment."""
    return journal.with_name(journal.name + ".ack")


def rejected_path(journal: Path) -> Path:
    """Returns the file of what MLflow refuses for ever."""
    return journal.with_name(journal.name + ".rejected")


def load_ack(journal: Path) -> Ack | None:
    """Returns the acknowledgment, or None where there is no sound one."""
    try:
        ack = Ack(**json.loads(ack_path(journal).read_text()))
        size = journal.stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return dataclasses.replace(ack, pending=tuple(ack.pending)) if ack.offset <= size else None


def save_ack(journal: Path, ack: Ack) -> None:
    """Replaces the acknowledgment in one step."""
    target = ack_path(journal)
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    draft.write_text(json.dumps(dataclasses.asdict(ack)))
    draft.replace(target)


def record_rejected(journal: Path, what: dict[str, Any], reason: str) -> None:
    """Appends one refused item and why to the record of the refused."""
    line = json.dumps({"t": int(time.time() * 1000), **what, "reason": reason})
    with rejected_path(journal).open("a") as file:
        file.write(line + "\n")
