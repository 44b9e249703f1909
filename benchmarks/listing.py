"""Lists a folder of N images in 1,000 classes, finds the listing again, and weighs its memory.

Times are CPU time of this process, since wall-clock time on a shared machine says little; the
factor is against `os.walk` over the same folder, in turns.

    python benchmarks/listing.py [COUNT], at least 20000
"""

import io
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from _figures import figure
from PIL import Image

from raybust.data import folder, kept

CLASSES, ROUNDS = 1000, 5


def make(root: Path, count: int) -> None:
    """Writes N JPEG files, a twentieth of them for testing, unless they are there."""
    content = io.BytesIO()
    Image.new("RGB", (64, 48), (30, 40, 50)).save(content, "JPEG")
    for part, share in (("train", 0.95), ("val", 0.05)):
        for kind in range(CLASSES):
            place = root / part / f"n{kind:08}"
            if place.exists():
                continue
            place.mkdir(parents=True)
            for number in range(round(share * count / CLASSES)):
                (place / f"n{kind:08}_{number:05}.JPEG").write_bytes(content.getvalue())


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def walk(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    listed, found, walked = [], [], []
    with TemporaryDirectory() as home, kept.beside(Path(home)):
        root = Path(home) / "images"
        make(root, count)
        time.sleep(3)  # a folder that has just changed is not kept
        for _ in range(ROUNDS):
            walked.append(seconds(lambda: walk(root)))
            listed.append(seconds(lambda: folder.scan(root)))
            folder.listed(root)
            found.append(seconds(lambda: folder.listed(root)))
        size = sum(path.stat().st_size for path in (Path(home) / kept.FOLDER).iterdir())
        tracemalloc.start()
        keep = folder.listed(root)
        held, peak = tracemalloc.get_traced_memory()
    total = len(keep.train) + len(keep.test)
    figure("listing/listed", listed, "s of CPU", "<= 2" if count == 100_000 else "")
    figure("listing/found_again", found, "s of CPU", "<= 0.2" if count == 100_000 else "")
    ratios = [ours / theirs for ours, theirs in zip(listed, walked, strict=True)]
    figure("listing/listed_over_os_walk", ratios, "ratio")
    figure("listing/memory", [held / total], "bytes a file", "<= 200")
    figure("listing/memory_while_read", [peak / total], "bytes a file")
    figure("listing/disk", [size / total], "bytes a file")


if __name__ == "__main__":
    main()
