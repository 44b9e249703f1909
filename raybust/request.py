"""Resolves what a user asks for: files and key=value to leaves, RUN to a path.

Names are resolved only here: a run's name, SWEEP/NUMBER, an MLflow id, a path, a search space
shipped with the package. The command line and the functions of the package use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.errors import RequestError, unknown

if TYPE_CHECKING:
    from raybust.config import Leaf


_BEST = "/best"
_MODELS = "_models"
"""Folder of the models fetched from MLflow; no run can have that name."""


def read_leaves(
    settings: Sequence[str], given: dict[str, Any]
) -> tuple[list[Leaf], dict[str, Any] | None]:
    """Returns the user's values by rising precedence, and the file's `search` block.

    Raises:
        RequestError: a setting is no text, or cannot be read.
    """
    from raybust import config as configuration

    if others := [type(one).__name__ for one in settings if not isinstance(one, str)]:
        raise RequestError(
            f"settings: got {others[0]}, expected text such as 'train.epochs=5'; a network of your"
            " own is the setting 'model.name=module:callable'"
        )
    for before, word in pairwise(settings):
        if word.startswith("=") or (before.endswith("=") and "=" not in word):
            raise RequestError(
                f"'{before} {word}': expected key=value with no spaces around =, for instance"
                " train.epochs=5"
            )
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


def apart(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the settings among the words of a command, and the others: a word with "=" is a
    setting unless it is a file or folder."""
    settings = tuple(word for word in words if "=" in word and not Path(word).exists())
    return settings, [word for word in words if word not in settings]


def _packaged(path: str) -> str:
    """Returns the path of a file, or of the packaged search space of that name: `quickstart`,
    `quickstart.yaml` and `search_spaces/quickstart.yaml` are the same.

    Raises:
        RequestError: a bare name is neither; the message suggests the nearest spelling.
    """
    if Path(path).exists():
        return path
    name = path.removeprefix("search_spaces/").removesuffix(".yaml")
    shipped = spaces()
    if name in shipped:
        return str(shipped[name])
    if path == name and path.isidentifier():
        raise unknown("file or search space", path, [n for n in sorted(shipped) if n[0] != "_"])
    return path


def spaces() -> dict[str, Path]:
    """Returns the packaged search spaces: name to file."""
    package = Path(__file__).parent
    homes = [home / "search_spaces" for home in (package, package.parent)]  # wheel, checkout
    return {file.stem: file for home in homes for file in sorted(home.glob("*.yaml"))}


def compose(leaves: Sequence[Leaf]) -> Any:
    """Composes the configuration, with the registered methods."""
    from raybust import config as configuration
    from raybust import methods as registry

    try:
        return configuration.compose(leaves, registry.get)
    except RequestError:
        _check_fields(leaves)
        raise


def _check_fields(leaves: Sequence[Leaf]) -> None:
    """Names the methods that have a field which the chosen one lacks.

    Raises:
        RequestError: there are some.
    """
    import dataclasses

    from raybust import config as configuration
    from raybust import methods as registry

    names = [str(leaf.value) for leaf in leaves if leaf.key == "method.name"]
    chosen = names[-1] if names else configuration.USUAL_METHOD
    asked = [leaf for leaf in leaves if leaf.key.startswith("method.")]
    if chosen not in registry.names() or len(asked) == len(names):
        return
    fields = {name: {field.name for field in dataclasses.fields(registry.get(name))}
              for name in registry.names()}  # fmt: skip
    for leaf in asked:
        field = leaf.key.removeprefix("method.")
        having = [name for name, known in fields.items() if field in known]
        if having and field not in fields[chosen]:
            raise RequestError(
                f"{leaf.key}: method {chosen} has no {field}; set method.name to one that has it:"
                f" {', '.join(having)} ({leaf.source})"
            )


def open_trained(
    run: str, settings: Sequence[str], given: dict[str, Any], *, with_data: bool = True
) -> Any:
    """Loads the trained network that RUN names, with the overrides of this call; without its data,
    the parts of its dataset are empty."""
    from raybust.trained import load_trained

    leaves, _ = read_leaves(settings, given)
    return load_trained(find(run, leaves), leaves, with_data=with_data)


def open_measured(run: str, settings: Sequence[str], given: dict[str, Any]) -> Any:
    """Loads the trained network that RUN names, or the ensemble that A,B,C name; see
    `open_trained`.

    Raises:
        RequestError: there is no such run, or the runs form no ensemble.
    """
    from raybust.ensembles import ensemble_of
    from raybust.trained import load_trained

    if "," not in run or Path(run).exists():
        return open_trained(run, settings, given)
    leaves, _ = read_leaves(settings, given)
    names = run.split(",")
    if not all(names):
        raise RequestError(f"RUN: got {run!r}, expected names like A,B,C without spaces")
    return ensemble_of(
        [
            load_trained(find(name, leaves), leaves, with_data=number == 0)
            for number, name in enumerate(names)
        ]
    )


def find(run: str, leaves: Sequence[Leaf]) -> Any:
    """Returns the path that RUN names: a run's name, SWEEP/7, SWEEP/best, its MLflow id, a
    registered model (models:/NAME@best), or a path.

    Raises:
        RequestError: there is no such run.
    """
    import re

    from raybust import track
    from raybust.disk import runs

    config = compose([leaf for leaf in leaves if leaf.key in ("out", "track.uri")])
    out = runs.out_folder(config)
    if run.startswith(track.REGISTRY):
        uri = track.resolve_uri(config.track, out)
        return track.fetch_model(uri, run, out / _MODELS)
    if run.endswith(_BEST) and not Path(run).exists():
        return _best_trial(find(run.removesuffix(_BEST), leaves))
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


def _best_trial(sweep: Path) -> Path:
    """Returns the folder of a sweep's best trial: that of highest rank among those that meet the
    constraints and could be measured, or have not been yet."""
    from raybust.disk import runs
    from raybust.search.board import board_of

    board = board_of(sweep)
    found = (one for one in board.entries if one.feasible is not False and not one.reason)
    best = next(found, None)
    if best is None:
        raise RequestError(
            f"{sweep.name}/best: no trial of {sweep.name} has finished and meets the constraints;"
            f" see `raybust report {sweep.name}`"
        )
    return runs.trial_folder(sweep, best.number)
