"""Isolated hosts for a session, and a cluster on them, started with examples/local.yaml."""

import shutil
import tempfile
from pathlib import Path

import isolated
import pytest
from isolated import Network
from lab import Lab


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and (reason := isolated.missing()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def network():
    folder = Path(tempfile.mkdtemp(prefix="raybust-hosts-"))
    made = Network(folder, "10.77.0")
    yield made
    made.end()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def lab(network):
    lab = Lab(network)
    lab.laptop.run("ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
    lab.laptop.run("ray up -y mine.yaml", timeout=180)
    lab.wait_for_both()
    lab.open_tunnel()
    return lab
