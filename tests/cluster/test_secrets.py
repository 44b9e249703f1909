"""A password in $MLFLOW_TRACKING_URI reaches a sweep's workers without being written to a file."""

import base64
import contextlib
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kit
import psutil
import pytest

from raybust import config as configuration
from raybust import methods
from raybust.stages import tuning

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

PASSWORD = "hunter2-of-test-secrets"


@pytest.fixture
def server():
    """(URI, titles of processes that sent the password) of a server that fails all requests."""
    titles = set()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            given = base64.b64decode(self.headers.get("Authorization", "").partition(" ")[2])
            if given == f"me:{PASSWORD}".encode():
                titles.add(title_of(self.client_address[1]))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://me:{PASSWORD}@127.0.0.1:{made.server_address[1]}", titles
    made.shutdown()
    made.server_close()


def title_of(port):
    """The title of the process at the other end of a connection."""
    for one in psutil.net_connections("tcp"):
        if one.laddr and one.laddr.port == port and one.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                return " ".join(psutil.Process(one.pid).cmdline())
    return "gone"


def holding(folder):
    """Files under a folder that contain the password, and the number of all files.

    Ray writes and removes files of its session while we read.
    """
    files = {}
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    files[path] = PASSWORD.encode() in path.read_bytes()
    return [path for path, found in files.items() if found], len(files)


@pytest.mark.parametrize(
    ("workers", "title"),
    [(1, kit.ACTORS), pytest.param(2, "ray::RayTrainWorker", marks=pytest.mark.slow)],
)
def test_no_file_of_a_sweep_has_the_password(
    workers, title, out, server, cluster, monkeypatch, tmp_path
):
    uri, titles = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    seen, remove = [], shutil.rmtree

    def removed(folder, **options):
        if Path(folder) == out / "secret" / ".ray" and Path(folder).exists():
            seen.append(holding(folder))
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)
    block = {"train.lr": {"choice": [0.05, 0.06], "default": 0.05}}
    settings = (
        "name=secret", "tune.trials=1", "tune.finalists=0", "tune.metric=validation/accuracy",
        f"cluster.workers={workers}", f"cluster.cpus_per_worker={1 / workers}", "train.epochs=1",
    )  # fmt: skip
    leaves = [leaf for leaf in kit.leaves(out, *settings) if leaf.key not in block]
    config = configuration.compose(leaves, methods.get)
    tuning.tune(config, leaves, block, address=None, resume=True, verbose=False, echo=[].append)
    assert any(found.startswith(title) for found in titles), titles
    ((files, count),) = seen
    assert count > 0
    assert files == []
    assert not (out / "secret" / ".ray").exists()
    session = cluster._private.worker.global_worker.node.get_session_dir_path()
    for folder in (out, session):
        files, count = holding(folder)
        assert count > 0
        assert files == []
