"""Records a run's software environment: versions, platform, commit. No environment variables, no
host names. Versions come from package metadata, so nothing heavy is imported. MLflow has tags of
its own for some of it.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import raybust

ENVIRONMENT = "environment.yaml"
"""Name under which a journal records it."""
_DIRTY = "-dirty"
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


def source_tags(found: Mapping[str, str]) -> dict[str, str]:
    """Returns MLflow's tags of what made a run: raybust, and the commit of a git repository.

    Args:
        found: the environment, see `environment`.
    """
    tags = {"mlflow.source.name": f"raybust {found['raybust']}", "mlflow.source.type": "LOCAL"}
    commit, dirty, _ = found.get("git_commit", "").partition(_DIRTY)
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(dirty))}
    return tags


def _commit(folder: str | Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", f"--dirty={_DIRTY}", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
