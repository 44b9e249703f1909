"""Distributions with entry points on the import path, as pip would install them."""

import importlib
from pathlib import Path

from raybust import plugins


def install(folder, name, entries, modules=None):
    """Writes a distribution into a folder of the import path.

    Args:
        folder: where; on sys.path, or to be put there.
        name: of the distribution, version 1.0.
        entries: group of entry points to {name: value}.
        modules: module to source.
    """
    info = Path(folder) / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entries.items():
        lines.append(f"[{group}]")
        lines += [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in (modules or {}).items():
        (Path(folder) / f"{module}.py").write_text(source)
    importlib.invalidate_caches()
    plugins.points.cache_clear()
