"""Resolves the command line: files and key=value to leaves, RUN to a path.

Names are resolved only here: a run's name, SWEEP/NUMBER, an MLflow id, a path, a search space
shipped with the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.errors import RequestError, unknown

if TYPE_CHECKING:
    from raybust.config import Leaf
    from raybust.stages.current import Current


def read_leaves(
    settings: Sequence[str], given: dict[str, Any]
) -> tuple[list[Leaf], dict[str, Any] | None]:
    """Returns the user's values by rising precedence, and the file's `search` block."""
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
    """Returns the path of a file, or of the packaged search space of that name: `quickstart`,
    `quickstart.yaml` and `search_spaces/quickstart.yaml` are the same.

    Raises:
        RequestError: a bare name is neither; the message suggests the nearest spelling.
    """
    if Path(path).exists():
        return path
    name = path.removeprefix("search_spaces/").removesuffix(".yaml")
    package = Path(__file__).parents[1]
    homes = [home / "search_spaces" for home in (package, package.parent)]  # wheel, checkout
    shipped = {file.stem: file for home in homes for file in home.glob("*.yaml")}
    if name in shipped:
        return str(shipped[name])
    if path == name and path.isidentifier():
        raise unknown("file or search space", path, [n for n in sorted(shipped) if n[0] != "_"])
    return path


def compose(leaves: Sequence[Leaf]) -> Any:
    """Composes the configuration, with the registered methods."""
    from raybust import config as configuration
    from raybust import methods as registry

    return configuration.compose(leaves, registry.get)


def open_trained(run: str, settings: tuple[str, ...], given: dict[str, Any]) -> Any:
    """Loads the trained network that RUN names, with the overrides of this call."""
    from raybust.trained import load_trained

    leaves, _ = read_leaves(settings, given)
    return load_trained(find(run, leaves), leaves)


def find(run: str, leaves: Sequence[Leaf]) -> Any:
    """Returns the path that RUN names: a run's name, its MLflow id, or a path."""
    import re

    from raybust import track
    from raybust.disk import runs

    config = compose([leaf for leaf in leaves if leaf.key in ("out", "track.uri")])
    out = runs.out_folder(config)
    if re.fullmatch(r"[0-9a-f]{32}", run):
        found = track.find_run(track.resolve_uri(config.track, out), run)
        if "raybust.folder" not in found.tags:
            raise RequestError(f"MLflow run {run}: was not made by raybust; choose another")
        folder = runs.by_uid(Path(found.tags["raybust.folder"]), found.run_key, out)
        if runs.read_identity(folder).uid != found.run_key:
            raise RequestError(
                f"MLflow run {run}: {folder} now holds a later run; give the folder that this one"
                f" was moved to, such as {folder.name}.1"
            )
        return folder
    return runs.find(run, out)


def find_logs(
    text: str, leaves: Sequence[Leaf], current: Current, *, needed: bool = True
) -> list[tuple[str, Path]]:
    """Returns the labels and paths of the certification logs that LOG.tsv or RUN names.

    Args:
        text: a log, or a run, trial or sweep for all logs in its folder.
        leaves: the settings; `out` locates the runs.
        current: networks and data as they are now.
        needed: whether a run without certificates is an error.
    """
    from raybust.cli.output import echo
    from raybust.reporting.naming import name_of

    path = Path(text).absolute()
    if path.is_file():
        if changed := current.changes(path):
            echo(f"warning: {path} is of {', '.join(changed)} than its run has now")
        return [(name_of(path), path)]
    folder = find(text, leaves)
    found = _current(text, sorted(folder.glob("**/certified/*.tsv")), current)
    if needed and not found:
        raise RequestError(f"{text}: has no certificates; run `raybust certify {text}`")
    many = len(found) > 1
    return [
        (f"{text} {_trial_label(log, folder)}{log.stem}" if many else text, log) for log in found
    ]


def find_results(
    text: str, leaves: Sequence[Leaf], current: Current, kind: str
) -> list[tuple[str, Path]]:
    """Returns the labels and paths of the evaluations in the folder of RUN; none for a file.

    Args:
        text: a certification log, or a run, trial or sweep.
        leaves: the settings; `out` locates the runs.
        current: networks and data as they are now.
        kind: "attacked" or "corrupted".
    """
    if Path(text).is_file():
        return []
    folder = find(text, leaves)
    found = sorted(folder.glob(f"**/{kind}/*.json"))
    kept = [path for path in found if ".robustbench-" not in path.name]
    return [
        (f"{text} {_trial_label(path, folder)}".strip(), path)
        for path in _current(text, kept, current)
    ]


def _current(text: str, files: Sequence[Path], current: Current) -> list[Path]:
    """Returns the results of the function, images and labels that their runs have now, and warns
    about the others and about those that cannot be compared; results put aside are skipped."""
    from raybust.cli.output import echo
    from raybust.disk.files import is_aside

    found, obstacles = [], dict[str, None]()
    for path in files:
        if is_aside(path):
            continue
        if changed := current.changes(path):
            echo(f"warning: skipping {path}: it is of {', '.join(changed)} than {text} has now")
            continue
        found.append(path)
        if obstacle := current.obstacle(path):
            obstacles[obstacle] = None
    for obstacle in obstacles:
        echo(f"warning: results of {text} are not compared with its network and data: {obstacle}")
    return found


def _trial_label(result: Path, named: Path) -> str:
    """Returns "trial 7 " for a result of a trial of the sweep that the command names, else ""."""
    from raybust.disk import runs

    home = result.parent.parent
    return f"trial {int(home.name)} " if home.parent.name == runs.TRIALS and home != named else ""


def runs_locally(address: str | None) -> bool:
    """Returns whether the command runs on this machine, not as a job of a jobs URL."""
    return address is None or not address.startswith(("http://", "https://"))


def submitted(address: str | None, leaves: Sequence[Leaf], detach: bool = False) -> bool:
    """Submits this command as a job if the address is a jobs URL; returns whether it is one.

    Raises:
        RequestError: the job would write into its working directory, which Ray deletes.
    """
    if address is None or runs_locally(address):
        if detach:
            raise RequestError("--detach: needs an --address that is a jobs URL (http://...)")
        return False
    from raybust.cli.output import echo
    from raybust.cluster import jobs

    out = compose([leaf for leaf in leaves if leaf.key == "out"]).out
    if not out.startswith("/"):
        raise RequestError(
            f"out: got {out}, a folder that Ray deletes after the job; give an absolute path that"
            " all nodes share, such as --out /mnt/raybust/runs"
        )
    jobs.submit(address, sys.argv[1:], echo, detach=detach)
    return True
