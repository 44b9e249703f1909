"""Delivery to a real MLflow server that is killed and restarted."""

import urllib.request

import pytest
from tracking import points, runs_of

from raybust.track import Flusher, Journal, find_run, prepare, sync

pytestmark = pytest.mark.slow


@pytest.fixture
def local(server):
    return f"sqlite:///{server.folder / 'mlflow.db'}"


def test_the_ui_answers(server):
    with urllib.request.urlopen(server.uri, timeout=10) as answer:
        assert b"MLflow" in answer.read()


def test_runs_survive_a_server_that_is_killed_and_comes_back(server, local, tmp_path):
    assert prepare(server.uri, tmp_path, "survivors") is None
    (tmp_path / "weights.bin").write_bytes(b"w" * 100_000)
    paths = [tmp_path / name / "journal.jsonl" for name in ("a", "b", "c")]
    journals = [Journal(path) for path in paths]
    flushers = [Flusher(path, server.uri, interval_s=0.05) for path in paths]
    for journal in journals:
        name = journal.path.parent.name
        journal.start(name, "survivors", name, params={"lr": 0.1}, parent_key="sweep")
    for step in range(60):
        for journal in journals:
            journal.metrics({"loss": step / 7, "acr": float("nan")}, step)
        if step == 20:
            server.kill()
        if step == 40:
            server.start()
    for journal in journals:
        journal.artifact(tmp_path / "weights.bin", "checkpoint")
        journal.text("seed: 0", "config.yaml")
        journal.end("FINISHED")
    assert [flusher.close(30) for flusher in flushers] == [True] * 3
    assert [flusher.rejected for flusher in flushers] == [0] * 3
    runs = {run.info.run_name: run for run in runs_of(server.uri, "survivors")}
    assert sorted(runs) == ["a", "b", "c", "sweep"]
    found = points(local)
    for name in "abc":
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
        for key in ("loss", "acr"):
            own = [step for run_id, k, step, _ in found if (run_id, k) == (run.info.run_id, key)]
            assert own == list(range(60))
    sent = server.folder.rglob(f"{runs['a'].info.run_id}/**/weights.bin")
    assert next(sent).read_bytes() == b"w" * 100_000
    assert find_run(server.uri, "a").run_id == runs["a"].info.run_id


def test_a_lost_acknowledgment_doubles_nothing_on_a_server(server, local, tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.start("lost", "acks", "lost", params={"lr": 0.1})
        for step in range(1500):
            journal.metrics({"loss": step, "nan": float("nan")}, step)
    assert sync(tmp_path, server.uri).left == ()
    before = points(local)
    (tmp_path / "journal.jsonl.ack").unlink()
    result = sync(tmp_path, server.uri)
    assert (result.journals, result.left, result.rejected) == (1, (), 0)
    assert points(local) == before
    assert len([key for _, key, *_ in before if key == "nan"]) >= 1500
