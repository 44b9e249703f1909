"""Registers a run's weights once as a version of a registered model.

The files are the run's own artifacts: an MLflow model from code, because the torch flavor is a
pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raybust.track.names import TAG_LIMIT, safe_key, safe_model, safe_value

if TYPE_CHECKING:
    from mlflow import MlflowClient

_OWN = "raybust."
DIGEST = "raybust.digest"
MODEL = "raybust.model"
"""Tag of a run: the registered version that it became."""
BEST = "best"
"""Alias of the best registered version: `models:/NAME@best`."""
METRIC = "raybust.metric"
"""Tag of a version: the metric that its sweep ranked by."""
MODE = "raybust.mode"
"""Tag: `max` or `min`."""
BOUNDS = "raybust.bounds"
"""Tag: the sweep's constraints."""
DATA = "raybust.data"
"""Tag: digest of the sweep's data."""
FIDELITY = "raybust.fidelity"
"""Tag: how trials were scored."""
VALUE = "raybust.value"
"""Tag: the metric's value; versions of one metric, mode, constraints, data and fidelity are
compared by it."""


def register_version(client: MlflowClient, run_id: str, entry: Mapping[str, Any]) -> None:
    """Creates or updates the version of a journal entry, and names it in a tag of the run and of
    its parent; the caller holds the store's lock.

    If the run's weights already have a version, its tags and description are updated.

    Args:
        client: client of the store, which is also the registry.
        run_id: the run with the weights among its artifacts.
        entry: an entry "register", see `Journal.register`.

    Raises:
        FileNotFoundError: the run has no such weights.
    """
    name, folder = safe_model(entry["model"]), safe_key(entry["folder"])
    _ensure_model(client, name)
    tags = {safe_key(k): safe_value(v, TAG_LIMIT) for k, v in entry["tags"].items()}
    tags[DIGEST] = entry["digest"]
    text = safe_value(entry["description"], TAG_LIMIT)
    found = [
        version
        for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if client.get_model_version(name, version.version).tags.get(DIGEST) == entry["digest"]
    ]
    if found:
        version = str(max(int(one.version) for one in found))
        client.update_model_version(name, version, description=text)
        for key in client.get_model_version(name, version).tags:
            if key.startswith(_OWN) and key not in tags:  # of an earlier measurement
                client.delete_model_version_tag(name, version, key)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
    else:
        weights = f"{folder}/{entry['file']}"
        if weights not in {item.path for item in client.list_artifacts(run_id, folder)}:
            raise FileNotFoundError(f"{weights}: is not among the run's artifacts")
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
        made = client.create_model_version(name, source, run_id, tags=tags, description=text)
        version = str(made.version)
    if _is_best(client, name, version, tags):
        client.set_registered_model_alias(name, BEST, version)
    client.set_tag(run_id, MODEL, f"models:/{name}/{version}")
    if parent := client.get_run(run_id).data.tags.get("mlflow.parentRunId"):
        client.set_tag(parent, MODEL, f"models:/{name}/{version}")


def _is_best(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> bool:
    """Returns whether a version takes the alias: none has it, the version that has it is worse by
    the sweep's metric, or the two were ranked by different metrics, constraints, data or
    fidelity."""
    current = client.get_registered_model(name).aliases.get(BEST)
    if current is None or str(current) == version:
        return True
    before = client.get_model_version(name, str(current)).tags
    if (
        any(before.get(key) != tags.get(key) for key in (METRIC, MODE, BOUNDS, DATA, FIDELITY))
        or VALUE not in before
    ):
        return True
    gain = float(tags[VALUE]) - float(before[VALUE])
    return gain >= 0 if tags[MODE] == "max" else gain <= 0


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise
