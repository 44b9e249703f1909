"""How MLflow's pages show the runs: which columns in which order, as a shared view of the
experiment.

The view is what MLflow's own button "Share" stores: a tag of the experiment, with JSON in a form
that MLflow 3 reads. Where MLflow does not know it, the link leads to the table as it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from raybust.track.client import find_key, load_mlflow, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_VIEW = "mlflow.sharedViewState."
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
_WORKFLOW = "workflowType=machine_learning"
"""Tell MLflow that an experiment has networks, not prompts."""
_COLUMNS = (
    "params.`method.name`",
    "metrics.`certified/acr`",
    "metrics.`certified/accuracy_at/0.5`",
    "metrics.`attacked/clean_accuracy`",
    "metrics.`attacked/robust_accuracy`",
    "metrics.`validation/accuracy`",
)
_ACR = "certified/acr"


def links(uri: str, experiment: str, sweep: str | None = None) -> dict[str, str]:
    """Returns where MLflow's UI shows the runs, as what each page shows to its address after the
    host; sets the view that they use.

    Args:
        uri: the store.
        experiment: the experiment's name.
        sweep: the key of a sweep whose trials are to be shown; None for all runs.
    """
    load_mlflow()
    client = open_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {"runs": "/"}
    place = f"/#/experiments/{found.experiment_id}/runs"
    parent = _newest_sweep(client, found.experiment_id, sweep)
    view = "raybust" if sweep is None or parent is None else f"raybust-{parent.info.run_id}"
    tags = {_KIND: _TRAINING, f"{_VIEW}{view}": json.dumps(_state(parent, sweep is not None))}
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    pages = {"runs": f"{place}?{_WORKFLOW}&viewStateShareKey={quote(view)}"}
    if parent is not None:
        pages[f"sweep {parent.info.run_name}"] = f"{place}/{parent.info.run_id}?{_WORKFLOW}"
    return pages


def _newest_sweep(client: MlflowClient, experiment: str, key: str | None) -> Run | None:
    """Returns the run of the newest sweep, or of the sweep with a key."""
    if key is not None:
        return find_key(client, experiment, key)
    text = "tags.`raybust.kind` = 'sweep'"
    order = ["attributes.start_time DESC"]
    return next(iter(client.search_runs([experiment], text, order_by=order, max_results=1)), None)


def _state(sweep: Run | None, alone: bool) -> dict[str, object]:
    """Returns the state of MLflow's table: sorted by the metric of a sweep, or by the ACR.

    Args:
        sweep: run of the sweep.
        alone: show only its trials.
    """
    tuned = {} if sweep is None else sweep.data.params
    metric = tuned.get("tune.metric", _ACR)
    columns = list(_COLUMNS)
    if (column := f"metrics.`{metric}`") not in columns:
        columns.insert(1, column)
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
        if alone and sweep is not None else "",
        "orderByKey": column,
        "orderByAsc": tuned.get("tune.mode", "max") == "min",
        "selectedColumns": columns,
    }  # fmt: skip
