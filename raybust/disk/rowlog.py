"""A log of rows on disk that grows while work goes on and survives a kill at any byte.

A first line `# {protocol as JSON}`, a line of column names, then tab-separated rows. Certificates
and attacks are kept so: rows are keyed, a torn last line is dropped, and a finished file is sorted,
so that its bytes do not depend on the order of the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from raybust.disk.files import replace_text
from raybust.errors import RequestError


class OtherProtocolError(RequestError):
    """A result that is there is not of what is asked for now.

    Args:
        differ: in what, a phrase each.
        path: its file.
    """

    def __init__(self, differ: Sequence[str], path: str | Path) -> None:
        super().__init__(
            f"{path}: is of {' and '.join(differ)}; --no-resume keeps it aside and begins anew, "
            "--name NAME keeps both"
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
        """What tells rows apart and puts them in order."""

    def line(self) -> str:
        """Returns the row as a line, with its line end."""

    def same(self, other: Self) -> bool:
        """Returns whether two rows say the same, the time that they took apart."""

    def fault(self, protocol: Any) -> str | None:
        """Returns in what the row contradicts itself or its protocol, or None."""

    @classmethod
    def parse(cls, line: str) -> Self:
        """Returns the row of a line; ValueError where it is no whole row."""


class Header(Protocol):
    """What the first line says."""

    def to_json(self) -> str:
        """Returns everything that the rows depend on."""

    def differences(self, text: str) -> Sequence[str]:
        """Returns in what another header differs, a phrase each; ValueError where it is none."""


R = TypeVar("R", bound=KeyedRow)
H = TypeVar("H", bound=Header)


class RowLog(Generic[R, H]):
    """A log on disk: opened or begun, appended to, finished. Subclasses say of which rows.

    Attributes:
        path: the file. While it grows, rows are in the order in which they came.
        protocol: what its header says.
    """

    row: ClassVar[type[Any]]
    columns: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    """What a message calls the file."""

    def __init__(self, path: str | Path, protocol: H) -> None:
        """Opens the log of a protocol, or begins it; a torn last line is dropped.

        Args:
            path: the file; its folder is made.
            protocol: what the header must say.

        Raises:
            OtherProtocolError: the file is of another function, other images, other labels or
                another protocol. It is left as it is.
            RequestError: the file is no log, or a row contradicts itself or the header. It is left
                as it is.
        """
        self.path, self.protocol = Path(path), protocol
        self._rows: dict[Any, R] = {}
        self._head = f"# {protocol.to_json()}\n" + "\t".join(self.columns) + "\n"
        content = self.path.read_bytes() if self.path.exists() else b""
        if self._head.encode().startswith(content):  # nothing yet, or killed in the header
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, self._head)
            return
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        self._check_header(lines[0] if lines else "")
        # Kept as it was written: its record of the function may differ from ours in rounding.
        self._head = lines[0] + "\n" + "\t".join(self.columns) + "\n"
        for number, line in enumerate(lines[2:], start=3):
            self._read(number, line)
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def _read(self, number: int, line: str) -> None:
        """Keeps the row of a line; of equal rows the first."""
        try:
            row: R = self.row.parse(line)
            wrong = row.fault(self.protocol)
        except (ValueError, TypeError, IndexError) as error:
            raise RequestError(
                f"{self.path}: line {number} is no row of a {self.what} ({error}); move the "
                "file away to begin anew"
            ) from None
        if wrong is None and not row.same(self._rows.setdefault(row.place, row)):
            wrong = f"it differs from an earlier row of {row.place}"
        if wrong is not None:
            raise RequestError(
                f"{self.path}: line {number} was changed after it was written: {wrong}; "
                "--no-resume keeps the file aside and begins anew"
            )

    def check_examples(self, labels: Mapping[int, int]) -> None:
        """Refuses rows of other examples than those that the protocol selects.

        Args:
            labels: of these examples, by their index.

        Raises:
            RequestError: a row is of another example, or has another label.
        """
        for row in self._rows.values():
            if labels.get(row.idx) != row.label:
                raise RequestError(
                    f"{self.path}: the row of example {row.idx} with label {row.label} is of no "
                    "example that the protocol selects; --no-resume keeps the file aside and "
                    "begins anew"
                )

    @property
    def header(self) -> str:
        """The header as it stands in the file: JSON."""
        return self._head.partition("\n")[0].removeprefix("# ")

    @property
    def places(self) -> frozenset[Any]:
        """The keys of the rows that are done."""
        return frozenset(self._rows)

    @property
    def rows(self) -> list[R]:
        """The rows that are done, in order."""
        return [row for _, row in sorted(self._rows.items())]

    def append(self, rows: Iterable[R]) -> None:
        """Writes rows through to the disk; those that are there already are left out."""
        new = {row.place: row for row in rows if row.place not in self._rows}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(row.line() for row in new.values()))
            file.flush()
            os.fsync(file.fileno())
        self._rows |= new

    def finish(self) -> list[R]:
        """Puts the file, sorted, in its place at once; returns its rows."""
        replace_text(self.path, self._head + "".join(row.line() for row in self.rows))
        return self.rows

    def _check_header(self, line: str) -> None:
        try:
            differ = self.protocol.differences(line.removeprefix("# "))
        except ValueError:
            raise RequestError(
                f"{self.path}: exists and is no {self.what} of raybust's; move it away"
            ) from None
        if differ:
            raise OtherProtocolError(differ, self.path)
