"""Lists a folder of N images in 1,000 classes, finds the listing again, and weighs its memory.

Times are CPU time of this process, since wall-clock time on a shared machine says little; the
factor is against `os.walk` over the same folder, in turns.

    python benchmarks/listing.py FOLDER 100000
"""

import io
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

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
    root, count = Path(sys.argv[1]), int(sys.argv[2])
    make(root, count)
    time.sleep(3)
    listed, found, walked = [], [], []
    with TemporaryDirectory() as out, kept.beside(Path(out)):
        for _ in range(ROUNDS):
            walked.append(seconds(lambda: walk(root)))
            listed.append(seconds(lambda: folder.scan(root)))
            folder.listed(root)
            found.append(seconds(lambda: folder.listed(root)))
        size = sum(path.stat().st_size for path in (Path(out) / kept.FOLDER).iterdir())
        total = walk(root)
        tracemalloc.start()
        keep = folder.listed(root)
        held, peak = tracemalloc.get_traced_memory()
        assert len(keep.train) + len(keep.test) == total
    for name, times in (("os.walk", walked), ("listed", listed), ("found again", found)):
        spread = f"{min(times):.3f} to {max(times):.3f}"
        each = median(times) / total * 1e6
        print(f"{name:<12} {median(times):.3f} s of CPU ({spread}), {each:.2f} us a file")
    print(f"listed / os.walk: {median(a / b for a, b in zip(listed, walked, strict=True)):.2f}")
    print(f"memory: {held / total:.0f} bytes a file, {peak / total:.0f} at most while read")
    print(f"on disk: {size / total:.1f} bytes a file")


if __name__ == "__main__":
    main()
