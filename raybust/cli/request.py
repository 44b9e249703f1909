"""What was typed: files and key=value to leaves, RUN to a path.

Names are resolved here and nowhere else: a run's name, SWEEP/NUMBER, an MLflow id, a path, a search
space that the package brings along.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.errors import RequestError

if TYPE_CHECKING:
    from raybust.config import Leaf


def read_leaves(
    settings: Sequence[str], given: dict[str, Any]
) -> tuple[list[Leaf], dict[str, Any] | None]:
    """Returns what the user set, in order of precedence, and the file's block `search`."""
    from raybust import config as configuration

    leaves: list[Leaf] = []
    block = None
    arguments = list(settings)
    if arguments and "=" not in arguments[0]:
        path = arguments.pop(0)
        file = _packaged(path)
        tree = configuration.read_yaml(file)
        block = configuration.expand(tree.pop("search", None), Path(file))
        leaves += configuration.leaves_of(tree, path)
    leaves += configuration.leaves_of_arguments(arguments)
    keys = {"name": "name", "out": "out", "workers": "cluster.workers"}
    for option, key in keys.items():
        if given.get(option) is not None:
            leaves.append(configuration.Leaf(key, given[option], f"--{option}"))
    return leaves, block


def _packaged(path: str) -> str:
    """Returns the path of a file, or of the search space of that name that raybust brings along."""
    package = Path(__file__).parents[1]
    for home in (package, package.parent):  # an installed wheel, a checkout
        if not Path(path).exists() and path.startswith("search_spaces/") and (home / path).exists():
            return str(home / path)
    return path


def compose(leaves: Sequence[Leaf]) -> Any:
    """Returns the configuration that the leaves make."""
    from raybust import config as configuration
    from raybust import methods as registry

    return configuration.compose(leaves, registry.get)


def open_trained(run: str, settings: tuple[str, ...], given: dict[str, Any]) -> Any:
    """Returns the trained network that RUN names, with the overrides of this call."""
    from raybust.trained import load_trained

    leaves, _ = read_leaves(settings, given)
    return load_trained(find(run, leaves), leaves)


def find(run: str, leaves: Sequence[Leaf]) -> Any:
    """Returns the path that RUN names: a run's name, its MLflow id, or a path."""
    import re

    from raybust import track
    from raybust.disk import runs

    places = [leaf for leaf in leaves if leaf.key in ("out", "track.uri")]
    config = compose(places)
    out = runs.out_folder(config)
    if re.fullmatch(r"[0-9a-f]{32}", run):
        found = track.find_run(track.resolve_uri(config.track, out), run)
        if "raybust.folder" not in found.tags:
            raise RequestError(f"MLflow run {run}: was not made by raybust; name another")
        folder = Path(found.tags["raybust.folder"])
        if runs.read_identity(folder).uid != found.run_key:
            raise RequestError(
                f"MLflow run {run}: {folder} holds a later run by now; name the folder in which"
                f" it was kept aside, such as {folder.name}.1"
            )
        return folder
    return runs.find(run, out)


def find_logs(text: str, leaves: Sequence[Leaf], *, needed: bool = True) -> list[tuple[str, Path]]:
    """Returns label and path of the certification logs that LOG.tsv or RUN names.

    Args:
        text: a log, or a run, trial or sweep: all logs in its folder.
        leaves: what else was typed; `out` says where runs are.
        needed: whether a run without certificates is an error.
    """
    from raybust.report.naming import name_of

    path = Path(text)
    if path.is_file():
        return [(name_of(path), path)]
    folder = find(text, leaves)
    found = _current(text, sorted(folder.glob("**/certified/*.tsv")), _first_line)
    if needed and not found:
        raise RequestError(f"{text}: has no certificates; `raybust certify {text}` makes them")
    many = len(found) > 1
    return [(f"{text} {_trial(log)}{log.stem}" if many else text, log) for log in found]


def find_attacks(text: str, leaves: Sequence[Leaf]) -> list[tuple[str, Path]]:
    """Returns label and summary of the evaluations under attack in the folder of RUN; none for a
    file.

    Args:
        text: a certification log, or a run, trial or sweep.
        leaves: what else was typed; `out` says where runs are.
    """
    if Path(text).is_file():
        return []
    from raybust.disk.files import read_json

    found = sorted(find(text, leaves).glob("**/attacked/*.json"))
    kept = [path for path in found if ".robustbench-" not in path.name]
    summaries = _current(text, kept, lambda path: read_json(path).get("protocol"))
    return [(f"{text} {_trial(path)}".strip(), path) for path in summaries]


def _current(text: str, files: Sequence[Path], header_of: Callable[[Path], Any]) -> list[Path]:
    """Returns the results of a run that are of the weights that it has now; says which are not.
    What was kept aside is left out."""
    from raybust.cli.output import echo
    from raybust.disk.files import is_aside
    from raybust.trained import is_current

    found = []
    for path in files:
        if is_aside(path):
            continue
        if is_current(path, header_of(path) or {}):
            found.append(path)
        else:
            echo(f"warning: {path} is left out: {text} has other weights since")
    return found


def _first_line(path: Path) -> Any:
    """Returns the header of a log, or None."""
    from raybust.identity import fields_of

    with path.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        return fields_of(line.removeprefix("# "))
    except ValueError:
        return None


def _trial(log: Path) -> str:
    """Returns "trial 7 " for a log of a trial of a sweep, else ""."""
    from raybust.disk import runs

    home = log.parent.parent
    return f"trial {int(home.name)} " if home.parent.name == runs.TRIALS else ""


def runs_locally(address: str | None) -> bool:
    """Returns whether the command runs from this machine: at no address, or at one of Ray's."""
    return address is None or not address.startswith(("http://", "https://"))


def submitted(address: str | None, leaves: Sequence[Leaf], detach: bool = False) -> bool:
    """Runs this same command on the cluster of a jobs URL; returns whether there was one.

    Raises:
        RequestError: the job would write into its working directory, which goes with it.
    """
    if address is None or runs_locally(address):
        if detach:
            raise RequestError("--detach: is for an --address that is a jobs URL (http://...)")
        return False
    from raybust.cli.output import echo
    from raybust.cluster import jobs

    out = compose([leaf for leaf in leaves if leaf.key == "out"]).out
    if not out.startswith("/"):
        raise RequestError(
            f"out: got {out}, which for a job is a folder that Ray deletes after it; give one that"
            " begins with / and that all nodes share, such as --out /mnt/raybust/runs"
        )
    jobs.submit(address, sys.argv[1:], echo, detach=detach)
    return True
