"""What it costs to prove that finished rows are of the function, images and labels at hand.

First a resumed certification of 1,000 rows: opening the log, whose rows are checked against
themselves; digests of weights, images and labels; the recorded outputs; a few rows computed again.
Then a folder of 100,000 image files of which a log speaks of 1,000. Prints one JSON line a figure.

    python benchmarks/identity.py [ROWS] [FILES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _figures import figure

from raybust.certification import CertificateLog, Protocol, Row, certify_examples, check_rows
from raybust.config.inputs import Data, Model
from raybust.data import Split, StreamedSplit, load
from raybust.models import build

RUNS = 5
SHAPE = (1, 8, 8)


def seconds(work: Callable[[], object]) -> float:
    """Returns how long a piece of work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def certification(rows: int, home: Path) -> None:
    """The proof on a finished log of small_cnn at n = 1000."""
    torch.manual_seed(0)
    model = Model(name="small_cnn")
    network = build(model, shape=SHAPE, num_classes=10, mean=(0.5,), std=(0.3,)).eval()
    images = torch.randint(0, 256, (rows, *SHAPE), dtype=torch.uint8)
    part = Split(images, torch.arange(rows) % 10, torch.arange(rows))
    protocol = Protocol(sigma=0.25, shape=SHAPE, n=1000).about(network, part)
    path = home / "log.tsv"

    def certify(indices: list[int], at: Protocol) -> list[Row]:
        pixels, labels = part.fetch(indices)
        found = certify_examples(network, pixels, labels, indices, at)
        return sorted(found, key=lambda row: indices.index(row.idx))

    log = CertificateLog(path, protocol)
    work = seconds(lambda: log.append(certify(list(range(rows)), protocol)))
    opened = [seconds(lambda: CertificateLog(path, protocol)) for _ in range(RUNS)]
    headers = [seconds(lambda: protocol.about(network, part)) for _ in range(RUNS)]
    again = [seconds(lambda: check_rows(log.rows, rows, protocol, path, certify))
             for _ in range(RUNS)]  # fmt: skip
    figure(f"reading and checking {rows} rows against themselves", opened, "s")
    figure("digests and recorded outputs", headers, "s")
    figure("a few rows, computed again", again, "s", "<= 1")
    whole = [sum(parts) for parts in zip(opened, headers, again, strict=True)]
    figure(f"the whole proof of {rows} rows", whole, "s")
    figure("the same over the work", [one / work for one in whole], "ratio")


def folder(files: int, home: Path) -> None:
    """The identity of a folder's images: of a log's examples, and of the whole for training."""
    for part, count in (("train", 9), ("val", 1)):
        for label in range(10):
            there = home / part / f"class{label}"
            there.mkdir(parents=True)
            for number in range(files * count // 100):
                content = f"{part} {label} {number} ".encode() * 60  # about a small JPEG file
                (there / f"{number:06d}.jpg").write_bytes(content)
    config = Data(name="image_folder", path=str(home), image_size=32)
    dataset = load(config)
    test = dataset.test
    assert isinstance(test, StreamedSplit)
    figure(f"listing {files} files", [seconds(lambda: load(config)) for _ in range(RUNS)], "s")
    few = range(min(1000, len(test)))
    content = [seconds(lambda: test.content(few)) for _ in range(RUNS)]
    figure(f"content of {len(few)} of {files} files", content, "s", "<= 1")
    content = [seconds(lambda: test.content(range(len(test)))) for _ in range(RUNS)]
    figure(f"content of {len(test)} of {files} files", content, "s")
    digests = [seconds(lambda: load(config).digest) for _ in range(RUNS)]
    figure(f"listing and digest of all {files} files, for training", digests, "s")


def main(arguments: list[str]) -> None:
    """Prints the figures."""
    rows, files = (int(text) for text in (*arguments, *("1000", "100000")[len(arguments) :]))
    with tempfile.TemporaryDirectory() as home:
        certification(rows, Path(home) / "log")
        folder(files, Path(home) / "images")


if __name__ == "__main__":
    main(sys.argv[1:])
