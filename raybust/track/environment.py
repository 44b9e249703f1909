"""Records a run's software environment: versions, platform, commit. No environment variables, no
host names. Versions come from package metadata, so nothing heavy is imported.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import raybust

ENVIRONMENT = "environment.yaml"
"""Name under which a journal records it."""
_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "optuna", "numpy")


def environment(folder: str | Path = ".") -> dict[str, str]:
    """Returns name to version, omitting packages that are not installed.

    Args:
        folder: git repository of the commit, which "-dirty" marks as having uncommitted changes to
            tracked files; outside a repository the commit is omitted.
    """
    found = {
        "raybust": raybust.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(folder)
    return {**found, "git_commit": commit} if commit else found


def source_tags(folder: str | Path = ".") -> dict[str, str]:
    """Returns MLflow's tags of what made a run: raybust, and the commit of a git repository."""
    commit = _commit(folder)
    tags = {"mlflow.source.name": f"raybust {raybust.__version__}", "mlflow.source.type": "LOCAL"}
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _commit(folder: str | Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
