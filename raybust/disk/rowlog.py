"""An append-only log of rows on disk that survives a kill at any byte.

It starts with a line `# {protocol as JSON}` and a line of column names; tab-separated rows follow.
Certificates and attacks use it: rows are keyed, a torn last line is dropped, and a finished file is
sorted, so that its bytes do not depend on the order of the work.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from raybust.disk.files import replace_text
from raybust.errors import RequestError


class OtherProtocolError(RequestError):
    """An existing result differs from the requested one in its function, data or protocol.

    Args:
        differ: the differences, one phrase each.
        path: the file.
    """

    def __init__(self, differ: Sequence[str], path: str | Path) -> None:
        super().__init__(
            f"{path}: comes from {' and '.join(differ)}; --no-resume sets it aside and starts "
            "over, --name NAME keeps both"
        )
        self.differ, self.path = tuple(differ), path

    def __reduce__(self) -> Any:
        return type(self), (self.differ, self.path)


class KeyedRow(Protocol):
    """A row that can be written and read back."""

    @property
    def idx(self) -> int:
        """Index of the example in its dataset."""

    @property
    def label(self) -> int:
        """Its label."""

    @property
    def place(self) -> Any:
        """The key that identifies and orders rows."""

    def line(self) -> str:
        """Returns the row as a line, including the newline."""

    def same(self, other: Self) -> bool:
        """Returns whether two rows agree, ignoring the time they took."""

    def fault(self, protocol: Any) -> str | None:
        """Returns how the row contradicts itself or its protocol, or None."""

    @classmethod
    def parse(cls, line: str) -> Self:
        """Returns the row in a line; raises ValueError if it is incomplete."""


class Header(Protocol):
    """The content of the first line."""

    def to_json(self) -> str:
        """Returns everything the rows depend on."""

    def differences(self, text: str) -> Sequence[str]:
        """Returns how another header differs, one phrase each; raises ValueError if it is none."""


R = TypeVar("R", bound=KeyedRow)
H = TypeVar("H", bound=Header)


class RowLog(Generic[R, H]):
    """A log on disk: opened or created, appended to, finished. Subclasses define the rows.

    Attributes:
        path: the file. Until it is finished, rows are in order of arrival.
        protocol: the content of its header.
    """

    row: ClassVar[type[Any]]
    columns: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    """What messages call the file."""

    def __init__(self, path: str | Path, protocol: H) -> None:
        """Opens or creates the log of a protocol; drops a torn last line.

        Args:
            path: the file; its folder is created.
            protocol: the required content of the header.

        Raises:
            OtherProtocolError: the file belongs to another function, other images, other labels or
                another protocol. It is left unchanged.
            RequestError: the file is not a log, or a row contradicts itself or the header. It is
                left unchanged.
        """
        self.path, self.protocol = Path(path), protocol
        self._rows: dict[Any, R] = {}
        self._head = f"# {protocol.to_json()}\n" + "\t".join(self.columns) + "\n"
        content = self.path.read_bytes() if self.path.exists() else b""
        if self._head.encode().startswith(content):  # empty, or killed while writing the header
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, self._head)
            return
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        self._check_header(lines[0] if lines else "")
        # Keep the header as written: its recorded outputs may differ from ours by rounding.
        self._head = lines[0] + "\n" + "\t".join(self.columns) + "\n"
        for number, line in enumerate(lines[2:], start=3):
            self._read(number, line)
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def _read(self, number: int, line: str) -> None:
        """Stores the row in a line; the first of equal rows wins."""
        try:
            row: R = self.row.parse(line)
            wrong = row.fault(self.protocol)
        except (ValueError, TypeError, IndexError) as error:
            raise RequestError(
                f"{self.path}: line {number} is not a row of a {self.what} ({error}); move "
                "the file away to start over"
            ) from None
        if wrong is None and not row.same(self._rows.setdefault(row.place, row)):
            wrong = f"it differs from an earlier row of {row.place}"
        if wrong is not None:
            raise RequestError(
                f"{self.path}: line {number} was changed after it was written: {wrong}; "
                "--no-resume sets the file aside and starts over"
            )

    def check_examples(self, labels: Mapping[int, int]) -> None:
        """Rejects rows of examples that the protocol does not select.

        Args:
            labels: labels of the selected examples by index.

        Raises:
            RequestError: a row's example is not selected, or its label differs.
        """
        for row in self._rows.values():
            if labels.get(row.idx) != row.label:
                raise RequestError(
                    f"{self.path}: the row of example {row.idx} with label {row.label} matches no "
                    "example that the protocol selects; --no-resume sets the file aside and starts "
                    "over"
                )

    @property
    def header(self) -> str:
        """The header as stored in the file: JSON."""
        return self._head.partition("\n")[0].removeprefix("# ")

    @property
    def places(self) -> frozenset[Any]:
        """The keys of the finished rows."""
        return frozenset(self._rows)

    @property
    def rows(self) -> list[R]:
        """The finished rows, in order."""
        return [row for _, row in sorted(self._rows.items())]

    def append(self, rows: Iterable[R]) -> None:
        """Appends rows and syncs them to disk; skips existing ones."""
        new = {row.place: row for row in rows if row.place not in self._rows}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(row.line() for row in new.values()))
            file.flush()
            os.fsync(file.fileno())
        self._rows |= new

    def carry(self, protocol: H, kept: Collection[int]) -> Self:
        """Returns this log under another protocol, with only the rows of the examples `kept`; the
        file is replaced atomically."""
        self._head = f"# {protocol.to_json()}\n" + "\t".join(self.columns) + "\n"
        self._rows = {at: row for at, row in self._rows.items() if row.idx in kept}
        self.finish()
        return type(self)(self.path, protocol)

    def finish(self) -> list[R]:
        """Sorts the file, replacing it atomically; returns its rows."""
        replace_text(self.path, self._head + "".join(row.line() for row in self.rows))
        return self.rows

    def _check_header(self, line: str) -> None:
        try:
            differ = self.protocol.differences(line.removeprefix("# "))
        except ValueError:
            raise RequestError(
                f"{self.path}: exists but is not a raybust {self.what}; move it away"
            ) from None
        if differ:
            raise OtherProtocolError(differ, self.path)
