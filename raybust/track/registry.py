"""The model registry: a run's weights as a version of a registered model, once.

In the arrow: track, called by delivery. Files and weights are the run's own artifacts; no MLflow
flavour is written, because those of torch are pickles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raybust.track.names import TAG_LIMIT, safe_key, safe_model, safe_value

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST = "raybust.digest"
BEST = "best"
"""Alias of the version that was registered last: `models:/NAME@best`."""


def register_version(client: MlflowClient, run_id: str, entry: Mapping[str, Any]) -> None:
    """Makes or updates the version of a journal's entry; the caller holds the store's lock.

    The same weights of the same run are the same version, whose tags and description are set anew.

    Args:
        client: client of the store, its registry the same.
        run_id: the run that has the weights among its artifacts.
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
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
    else:
        weights = f"{folder}/{entry['file']}"
        if weights not in {item.path for item in client.list_artifacts(run_id, folder)}:
            raise FileNotFoundError(f"{weights}: is not among the run's artifacts")
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
        made = client.create_model_version(name, source, run_id, tags=tags, description=text)
        version = str(made.version)
    client.set_registered_model_alias(name, BEST, version)


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise
