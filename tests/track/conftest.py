"""Stores for the tests: copies of one SQLite template, and one real MLflow server per session."""

import shutil
import tempfile

import pytest
from tracking import Server

from raybust.track.client import open_client


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A SQLite file with MLflow's schema, to be copied because creating one takes seconds."""
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_client(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """Puts the locks of servers into the test's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def store(template, tmp_path):
    """URI of a fresh store."""
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def server(template, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), template)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(store):
    return open_client(store)
