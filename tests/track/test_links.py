"""Where `raybust ui` leads: the view of an experiment, on the page of a real MLflow server."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from browser import CHROMIUM, open_tab, wait_for
from PIL import Image
from tracking import Server, deliver, free_port, runs_of

from raybust import config as configuration
from raybust import methods
from raybust.disk import runs
from raybust.errors import RequestError
from raybust.search import dashboard
from raybust.search.database import open_study
from raybust.track import NOTE, Journal, links, picture

SWEEP_KEY = "key-of-the-sweep"


def tell(folder, store, key, name, *, values, tags=None, params=None, parent=None):
    """Delivers the journal of one run of the experiment e."""
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / runs.JOURNAL) as journal:
        journal.start(key, "e", name, tags=tags, params=params, parent_key=parent)
        journal.metrics(values, step=1)
        journal.end("FINISHED")
    deliver(folder / runs.JOURNAL, store)


@pytest.fixture
def sweep(store, tmp_path):
    """A store with a sweep of two trials and a run of its own; returns the folder of the runs."""
    out = tmp_path
    params = {"tune.metric": "validation/loss", "tune.mode": "min"}
    tags = {"raybust.kind": "sweep"}
    tell(out / "first", store, SWEEP_KEY, "first", values={}, tags=tags, params=params)
    for number, loss in enumerate((0.3, 0.1)):
        values = {"validation/loss": loss, "certified/acr": loss}
        folder = out / f"first/trials/{number}"
        tell(folder, store, f"t{number}", f"first/{number}", values=values, parent=SWEEP_KEY,
             params={"method.name": "gaussian"})  # fmt: skip
    tell(out / "alone", store, "alone", "alone", values={"certified/acr": 0.5})
    return out


def view_of(client, address):
    """The state of the table that an address shows."""
    key = address.partition("viewStateShareKey=")[2]
    tags = client.get_experiment_by_name("e").tags
    return json.loads(tags[f"mlflow.sharedViewState.{key}"])


def test_the_view_is_sorted_by_the_metric_of_the_newest_sweep(sweep, store, client):
    pages = links(store, "e")
    assert list(pages) == ["runs", "sweep first"]
    state = view_of(client, pages["runs"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`validation/loss`", True)
    assert state["searchFilter"] == ""
    assert {"params.`method.name`", "metrics.`certified/acr`"} < set(state["selectedColumns"])
    (parent,) = [run for run in runs_of(store) if run.info.run_name == "first"]
    assert f"/runs/{parent.info.run_id}" in pages["sweep first"]


def test_the_view_of_a_sweep_finds_its_trials_alone(sweep, store, client):
    state = view_of(client, links(store, "e", SWEEP_KEY)["runs"])
    number = client.get_experiment_by_name("e").experiment_id
    found = client.search_runs([number], state["searchFilter"])
    assert {run.info.run_name for run in found} == {"first/0", "first/1"}


def test_without_a_sweep_the_view_is_sorted_by_acr(store, client, tmp_path):
    tell(tmp_path / "alone", store, "alone", "alone", values={"certified/acr": 0.5})
    pages = links(store, "e")
    assert list(pages) == ["runs"]
    state = view_of(client, pages["runs"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`certified/acr`", False)
    assert len(set(state["selectedColumns"])) == len(state["selectedColumns"])


def test_without_the_experiment_mlflows_own_page_is_shown(store):
    assert links(store, "other") == {"runs": "/"}


@pytest.fixture
def shown(sweep, store):
    """`raybust ui`, started; its process, its links, and the processes that it started."""
    command = [sys.executable, "-m", "raybust", "ui", "--no-open", "--out", str(sweep)]
    process = subprocess.Popen(
        [*command, "--port", str(free_port())], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": store, "DISPLAY": ""},
    )  # fmt: skip
    pages = {}
    for line in process.stderr:
        if "http://127.0.0.1" in line:
            what, _, address = line.rpartition("  ")
            pages[what.strip()] = address.strip()
            break
    children = psutil.Process(process.pid).children(recursive=True)
    yield process, pages, children
    process.kill()
    process.wait()


def test_ctrl_c_and_sigterm_end_the_server(shown):
    process, pages, children = shown
    with urllib.request.urlopen(pages["runs"].partition("#")[0]) as answer:
        assert answer.status == 200
    assert children
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_port_in_use_is_refused(sweep, store, cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("ui", "--no-open", "--out", str(sweep), "--port", str(port))
    assert done.code == 2
    assert f"--port: {port} cannot be used (Address already in use); choose another" in done.err


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_mlflows_page_shows_the_view(sweep, store):
    address = links(store, "e")["runs"]
    (sweep / "server").mkdir()
    own = Server(sweep / "server", sweep / "mlflow.db")
    own.start()
    try:
        with open_tab(f"{own.uri}{address}", width=1900) as tab:
            text = "document.body.innerText"
            wait_for(tab, f"{text}.includes('first/1') && {text}.includes('alone')", 60)
            first = f"{text}.indexOf('first/1') < {text}.indexOf('first/0')"
            wait_for(tab, f"{text}.includes('Sort: validation/loss') && {first}", 60)
            wait_for(tab, f"{text}.includes('method.name')", 60)
            wait_for(tab, f"!{text}.includes('Prompts')", 60)  # pages for networks, not for these
            assert tab.evaluate(text).count("first/0") == 1
    finally:
        own.kill()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_description_of_a_run_shows_its_picture(sweep, store):
    """The curve of a certification, by the address of an artifact of the run."""
    image = sweep / "alone" / "a curve_1.png"
    image.parent.mkdir(exist_ok=True)
    Image.new("RGB", (37, 21)).save(image)
    with Journal(sweep / "alone" / f"more.{runs.JOURNAL}") as journal:
        journal.attach("alone", "e")
        journal.artifact(image, "certified")
        journal.tags({NOTE: picture("the curve", f"certified/{image.name}")})
    deliver(journal.path, store)
    (run,) = [run for run in runs_of(store) if run.info.run_name == "alone"]
    assert f"run_uuid={run.info.run_id})" in run.data.tags[NOTE]
    (sweep / "server").mkdir()
    own = Server(sweep / "server", sweep / "mlflow.db")
    own.start()
    try:
        address = f"{own.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        with open_tab(address, width=1900) as tab:
            shown = "document.querySelector('img[src*=get-artifact]')?.naturalWidth"
            wait_for(tab, f"{shown} == 37", 60)
    finally:
        own.kill()


@pytest.fixture
def study(tmp_path):
    """A sweep's folder with its study; returns configuration and folder."""
    leaves = configuration.leaves_of_arguments(["data.name=digits"])
    config, folder = configuration.compose(leaves, methods.get), tmp_path / "first"
    folder.mkdir()
    study = open_study(config, folder, SWEEP_KEY)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return config, folder


def test_optunas_dashboard_shows_the_study(study):
    address = dashboard.serve(*study, SWEEP_KEY, free_port())
    host, _, number = address.partition("/dashboard/studies/")
    with urllib.request.urlopen(address) as page:
        assert b"optuna" in page.read().lower()
    with urllib.request.urlopen(f"{host}/api/studies/{number}?after=0") as answer:
        found = json.load(answer)
    assert len(found["trials"]) == 3
    assert found["name"] == "first"


def test_the_dashboard_answers_to_its_own_names_alone(study):
    host = dashboard.serve(*study, SWEEP_KEY, free_port()).partition("/dashboard")[0]
    foreign = urllib.request.Request(f"{host}/api/studies", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign)


def test_a_dashboard_without_a_study_or_a_port_is_refused(study, tmp_path):
    config, folder = study
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="has no study of sweep empty"):
        dashboard.serve(config, tmp_path / "empty", "other", free_port())
    port = free_port()
    dashboard.serve(config, folder, SWEEP_KEY, port)
    with pytest.raises(RequestError, match=f"port {port}: Address already in use; choose another"):
        dashboard.serve(config, folder, SWEEP_KEY, port)
