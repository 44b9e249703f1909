"""Shared by the tracking tests: deliver a journal, inspect a store, start a real server."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

from raybust.track import ui_command
from raybust.track.client import open_client
from raybust.track.delivery import Delivery


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real server, started as `raybust ui` starts it."""

    def __init__(self, folder, template):
        shutil.copy(template, folder / "mlflow.db")
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        command, environment = ui_command(uri, self.folder, port=self.port)
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.uri + "/health", timeout=1) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert time.monotonic() < deadline, "the server did not come up"
                assert self.process.poll() is None, "the server exited"
                time.sleep(0.2)

    def kill(self):
        os.killpg(self.process.pid, 9)
        self.process.wait()


def deliver(journal, uri):
    """Delivers a whole journal; returns the delivery."""
    delivery = Delivery(journal, uri)
    while not delivery.step():
        pass
    return delivery


def runs_of(uri, experiment="e"):
    client = open_client(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def points(uri):
    """All rows of the metric table, duplicates included, as (run, key, step, value)."""
    file = uri.removeprefix("sqlite:///")
    with sqlite3.connect(file) as connection:
        return sorted(connection.execute("select run_uuid, key, step, value from metrics"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def python(code, *arguments):
    """Starts Python with code; its output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
