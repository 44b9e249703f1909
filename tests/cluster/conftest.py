"""One embedded Ray, one MLflow schema and one trained run for all tests of this folder."""

import logging
import os
import secrets
import shutil

import kit
import pytest

import raybust.cluster  # noqa: F401  sets Ray's options before Ray is imported
from raybust.cluster.embedded import embedded
from raybust.track.client import open_client

# Commands in other processes reach the tests' Ray with its token.
os.environ |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="session")
def cluster():
    """Ray as `raybust.cluster.session` starts it, but always with two CPUs."""
    import ray

    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    with embedded(ray, num_cpus=2, include_dashboard=True, **quiet):
        yield ray


@pytest.fixture(scope="session")
def new_out(tmp_path_factory):
    """Creates folders with a store by copying one, because creating its schema takes seconds."""
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_client(f"sqlite:///{template}").search_experiments()

    def make(name="out"):
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(template, folder / "mlflow.db")
        return folder

    return make


@pytest.fixture
def out(new_out, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_out()


@pytest.fixture(scope="session")
def trained(cluster, new_out):
    """(out, run folder, printed lines) of a run with one worker."""
    from raybust.stages import training

    out, said = new_out("trained"), []
    config = kit.config(out, "name=one")
    folder = training.train(config, address=None, resume=True, verbose=False, echo=said.append)
    return out, folder, said
