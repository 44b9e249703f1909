"""Models of MLflow: written as folders that MLflow loads and serves, and fetched from the registry.

They are models from code: a Python file beside the weights, no pickle. A fetched model stays on
disk under a name of its own: versions recur in other stores and after a model was deleted.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

import raybust
from raybust.errors import RequestError, WorkError
from raybust.track.client import is_gone, is_permanent, load_mlflow, open_client, reason_of
from raybust.track.uri import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "artifacts"
"""Folder below a model in which MLflow keeps the model's files."""
REGISTRY = "models:/"
"""Start of the URI of a registered model."""

_PACKAGES = ("torch", "torchvision", "mlflow", "numpy", "pandas", "safetensors")
_COLUMNS = (
    ("image", "string"), ("label", "string"), ("number", "long"), ("abstain", "boolean"),
    ("radius", "double"), ("norm", "string"), ("bound", "double"), ("draws", "long"),
)  # fmt: skip
"""Of the answers, with MLflow's types."""


def save_model(
    folder: Path,
    code: Path,
    files: Mapping[str, Path],
    example: Any,
    *,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Writes an MLflow model; replaces what is in the folder.

    Args:
        folder: is created.
        code: a Python file that sets the model.
        files: name to file, copied and passed to the model.
        example: float32 (N, C, H, W), input of the example.
        config: default settings, which `load_model(..., model_config=...)` overrides.
        metadata: plain data for whoever looks at the model.
    """
    load_mlflow()
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    parameters: Sequence[ParamSpec] = [
        ParamSpec("radius", "double", -1.0),
        ParamSpec("n", "long", 0),
        ParamSpec("alpha", "double", 0.0),
        ParamSpec("plain", "boolean", False),
    ]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *example.shape[1:]))]),
        outputs=Schema([ColSpec(kind, name) for name, kind in _COLUMNS]),
        params=ParamSchema(list(parameters)),
    )
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(code),
        artifacts={name: str(path) for name, path in files.items()},
        signature=signature,
        input_example=example,
        pip_requirements=[f"raybust=={raybust.__version__}", *map(_pinned, _PACKAGES)],
        metadata=dict(metadata),
        model_config=dict(config),
    )
    _forget_paths(folder)


def fetch_model(uri: str, model: str, folder: Path) -> Path:
    """Downloads a model of MLflow unless it is there; returns the folder of its checkpoint.

    Args:
        uri: the store.
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: of all downloaded models.

    Raises:
        RequestError: there is no such model, or it is not one of raybust's.
        WorkError: the store does not answer.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise RequestError(f"{model}: there is no MLflow store {file}; set --out or track.uri")
    load_mlflow()
    from mlflow.artifacts import download_artifacts

    try:
        client = open_client(uri)
        name, version = _version(client, model)
        found = client.get_model_version(name, version)
        made = f"{found.source} {found.creation_timestamp} {found.run_id}"
        place = folder / f"{name}-{version}-{hashlib.sha256(made.encode()).hexdigest()[:8]}"
        if (place / "MLmodel").exists():
            return place / ARTIFACTS
        folder.mkdir(parents=True, exist_ok=True)
        source = client.get_model_version_download_uri(name, version)
        with TemporaryDirectory(dir=folder, prefix=".") as part:
            new = Path(download_artifacts(artifact_uri=source, dst_path=part, tracking_uri=uri))
            if not (new / ARTIFACTS).is_dir():
                raise RequestError(
                    f"{model}: was not packaged by this version of raybust or a later one"
                )
            new.rename(place)
    except RequestError:
        raise
    except Exception as error:
        kind = RequestError if is_gone(error) or is_permanent(error) else WorkError
        raise kind(f"{model}: {reason_of(error, uri)}") from error
    return place / ARTIFACTS


def _version(client: MlflowClient, model: str) -> tuple[str, str]:
    """Returns the name and version that a URI of the registry means."""
    rest = model.removeprefix(REGISTRY)
    name, at, alias = rest.rpartition("@")
    if at:
        return name, str(client.get_model_version_by_alias(name, alias).version)
    name, slash, version = rest.rpartition("/")
    if not (slash and version.isdigit()):
        raise RequestError(f"{model}: expected {REGISTRY}NAME@best or {REGISTRY}NAME/VERSION")
    return name, version


def _forget_paths(folder: Path) -> None:
    """Removes this machine's paths from a model, which whoever uses it would read."""
    path = folder / "MLmodel"
    record = yaml.safe_load(path.read_text())
    flavor = record["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact.pop("uri")
    path.write_text(yaml.safe_dump(record, sort_keys=False))


def _pinned(package: str) -> str:
    from importlib.metadata import version

    return f"{package}=={version(package).partition('+')[0]}"
