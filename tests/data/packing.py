"""Packs the images of a folder into parquet files and tar shards, byte for byte."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def members(root, part):
    """Returns (name, bytes, class) of a part's images, in the order of `image_folder`."""
    found = []
    for folder in sorted((root / part).iterdir()):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found += [(path.name, path.read_bytes(), folder.name) for path in files]
    return found


def add(archive, name, content):
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


def as_tar(rows, path, shards=1, label_in="cls"):
    """Writes rows (name, bytes, label) as tar shards PATH-000.tar."""
    for shard in range(shards):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(f"{path}-{shard:03}.tar", "w") as archive:
            low, high = (len(rows) * at // shards for at in (shard, shard + 1))
            for number, (name, content, label) in enumerate(rows[low:high], low):
                key, ending = f"{number:06}", name.rpartition(".")[2]
                add(archive, f"{key}.{ending}", content)
                if label is not None:
                    text = str(label) if label_in == "cls" else f'{{"label": "{label}"}}'
                    add(archive, f"{key}.{label_in}", text.encode())


def as_parquet(rows, path, files=1, cell="struct", group=3, **options):
    """Writes rows (name, bytes, label) as parquet files PATH-0000N.parquet."""
    for file in range(files):
        low, high = (len(rows) * at // files for at in (file, file + 1))
        images = [content for _, content, _ in rows[low:high]]
        if cell == "struct":
            images = [{"bytes": content, "path": name} for name, content, _ in rows[low:high]]
        table = pa.table({"image": images, "label": [label for _, _, label in rows[low:high]]})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, f"{path}-{file:05}.parquet", row_group_size=group, **options)
