import json
import shutil
import sqlite3
import threading
import time

import pytest
from fake import Fake
from tracking import deliver, free_port, lines, points, runs_of

from raybust.disk.lock import take
from raybust.track import Flusher, Journal, flush, log_to_run, lost, prepare, sync, unsent
from raybust.track.ack import ack_path, rejected_path
from raybust.track.delivery import Delivery
from raybust.track.flush import backoff

QUEUE_POOL = json.dumps(
    {
        "error_code": "BAD_REQUEST",
        "message": "QueuePool limit of size 5 overflow 10 reached, connection timed out",
    }
)
INVALID_POOL = QUEUE_POOL.replace("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


@pytest.fixture
def fake():
    fake = Fake()
    yield fake
    fake.stop()


def started(path, key="key"):
    journal = Journal(path)
    journal.start(key, "e", key)
    return journal


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def test_the_thread_sends_while_the_run_goes_on(path, store):
    with started(path) as journal, Flusher(path, store, interval_s=0.05) as flusher:
        journal.metrics({"loss": 1.0}, 1)
        until(lambda: len(points(store)) == 1)
        journal.metrics({"loss": 2.0}, 2)
        until(lambda: len(points(store)) == 2)
        journal.end("FINISHED")
        assert flusher.close(10)
        assert flusher.problem is None
    assert runs_of(store)[0].info.status == "FINISHED"


@pytest.mark.parametrize(
    "faults",
    [
        [(500, "{}"), (503, "<html>busy</html>")],
        [(400, QUEUE_POOL), (400, INVALID_POOL)],
        [(400, "no JSON"), (404, "proxy"), (429, "{}"), (401, "{}")],
        [1.5],
    ],
    ids=["5xx", "queue pool", "others", "hangs"],
)
def test_a_request_that_fails_for_now_is_sent_again(path, fake, monkeypatch, faults):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    fake.faults = list(faults)
    with started(path) as journal:
        for step in range(3):
            journal.metrics({"loss": 1.0}, step)
        journal.end("FINISHED")
        assert Flusher(path, fake.uri, interval_s=0.05).close(20)
    assert fake.faults == []
    assert fake.points == [("loss", step, 1.0) for step in range(3)]
    assert fake.status == "FINISHED"
    assert not rejected_path(path).exists()
    assert fake.requests.count("runs/create") == 1
    assert fake.requests.count("runs/log-batch") == len(faults) + 1


def test_closing_keeps_its_deadline_while_the_server_hangs(path, fake):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
    fake.faults = [30.0] * 5
    flusher = Flusher(path, fake.uri)
    until(lambda: "runs/log-batch" in fake.requests)
    begin = time.monotonic()
    assert not flusher.close(0.3)
    assert time.monotonic() - begin < 2
    assert unsent(path.parent) == [path]


def test_a_server_that_comes_late_gets_everything(path):
    port = free_port()
    with started(path) as journal:
        flusher = Flusher(path, f"http://127.0.0.1:{port}", interval_s=0.05)
        journal.metrics({"loss": 1.0}, 1)
        until(lambda: flusher.problem is not None)
        journal.metrics({"loss": 2.0}, 2)
        fake = Fake(port)
        assert flusher.close(20)
        fake.stop()
    assert fake.points == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    assert flusher.problem is None


def test_what_a_closed_flusher_left_is_synced(path, fake):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.end("FAILED", "nan")
    flusher = Flusher(path, f"http://127.0.0.1:{free_port()}")
    assert not flusher.close(0.5)
    result = sync(path.parent.parent, fake.uri)
    assert (result.journals, result.left) == (1, ())
    assert (fake.points, fake.status) == ([("loss", 1, 1.0)], "FAILED")
    assert sync(path.parent.parent, fake.uri).journals == 0


def test_sync_sends_what_is_left_under_a_folder_and_nothing_twice(tmp_path, store):
    for i in range(3):
        with started(tmp_path / f"t{i}" / "journal.jsonl", f"t{i}") as journal:
            journal.metrics({"loss": i}, 1)
    deliver(tmp_path / "t0" / "journal.jsonl", store)
    (tmp_path / "t0" / "checkpoint").mkdir()
    copy = (tmp_path / "t0" / "journal.jsonl").read_bytes()
    (tmp_path / "t0" / "checkpoint" / "journal.copy").write_bytes(copy)
    (tmp_path / "t9").mkdir()
    (tmp_path / "t9" / "journal.jsonl").write_text("no journal\n")
    result = sync(tmp_path, store)
    assert result.journals == 3
    assert [path.parent.name for path, _ in result.left] == ["t9"]
    assert sorted(value for *_, value in points(store)) == [0.0, 1.0, 2.0]
    assert [path.parent.name for path in unsent(tmp_path)] == ["t9"]


def test_sync_soon_leaves_a_store_that_is_away(tmp_path, monkeypatch):
    tries, step = [], Delivery.step
    monkeypatch.setattr(Delivery, "step", lambda self: tries.append(self) or step(self))
    for i in range(6):
        started(tmp_path / f"t{i}" / "journal.jsonl", f"t{i}").close()
    result = sync(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert len(result.left) == 6
    assert len(tries) <= 6
    assert all("refused" in reason for _, reason in result.left)


def test_a_run_finished_elsewhere_moves_whole_to_another_store(path, store, fake):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        deliver(path, fake.uri)
        journal.metrics({"loss": 2.0}, 2)
    deliver(path, store)
    assert [step for _, _, step, _ in points(store)] == [1, 2]


def test_certificates_are_added_to_a_finished_run(path, store, tmp_path):
    with started(path) as journal:
        journal.end("FINISHED")
    deliver(path, store)
    table = tmp_path / "certificates.tsv"
    table.write_text("idx\tlabel")
    for _ in range(2):
        result = log_to_run(
            path.parent / "certify.journal.jsonl",
            store,
            "key",
            "e",
            metrics={"certified/acr": 0.5},
            artifacts=[table],
            folder="certificates",
            tags={"certified": "test"},
        )
        assert result.left == ()
    (run,) = runs_of(store)
    assert run.info.status == "FINISHED"
    assert (run.data.metrics, run.data.tags["certified"]) == ({"certified/acr": 0.5}, "test")
    assert len(points(store)) == 1
    assert next(tmp_path.rglob("mlartifacts/**/certificates.tsv")).parent.name == "certificates"


def test_certificates_before_their_run_arrived_do_not_split_it(path, store):
    log_to_run(path.parent / "certify.journal.jsonl", store, "key", "e", metrics={"acr": 0.5})
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.end("FINISHED")
    deliver(path, store)
    (run,) = runs_of(store)
    assert run.data.metrics == {"acr": 0.5, "loss": 1.0}
    assert run.info.status == "FINISHED"


def test_a_password_is_shown_nowhere(path, capfd, caplog):
    uri = f"http://user:s3cr%40t@127.0.0.1:{free_port()}"
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
    flusher = Flusher(path, uri)
    until(lambda: flusher.problem is not None)
    flusher.close(0.1)
    texts = [flusher.problem, prepare(uri, path.parent, "e"), str(sync(path.parent, uri))]
    fake = Fake()
    fake.faults = [(400, INVALID_POOL.replace("QueuePool limit", uri + " s3cr@t"))] * 2
    uri = fake.uri.replace("//", "//user:s3cr%40t@")
    texts.append(str(sync(path.parent, uri)))
    fake.stop()
    assert len(lines(rejected_path(path))) == 1
    texts += [file.read_text() for file in path.parent.iterdir()]
    texts += [*capfd.readouterr(), caplog.text]
    assert ack_path(path).exists()
    assert "user:***@127.0.0.1" in texts[1]
    assert [text for text in texts if "s3cr" in text] == []


def test_waits_grow_to_a_bound():
    waits = [backoff(failures) for failures in (1, 3, 8, 1000)]
    assert 0.125 <= waits[0] <= 0.25 < waits[1] < waits[2] <= 30
    assert 15 <= waits[3] <= 30


def test_a_store_that_was_replaced_gets_everything_again(path, template, tmp_path):
    """The acknowledgment names the store itself, not only its address."""
    file = tmp_path / "own.db"
    uri = f"sqlite:///{file}"
    shutil.copy(template, file)
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.end("FINISHED")
    deliver(path, uri)
    assert (unsent(path.parent), lost(path.parent, uri)) == ([], [])
    with sqlite3.connect(file) as connection:  # a new process would find a new file
        connection.execute("delete from experiment_tags")
        connection.execute("delete from metrics")
        connection.execute("delete from latest_metrics")
        connection.execute("delete from params")
        connection.execute("delete from tags")
        connection.execute("delete from runs")
    assert (unsent(path.parent), lost(path.parent, uri)) == ([], [path])
    assert sync(path, uri).left == ()
    assert [step for _, _, step, _ in points(uri)] == [1]
    assert lost(path.parent, uri) == []


@pytest.mark.parametrize("seconds", [2.5, None])
def test_a_journal_that_a_dying_worker_delivers_is_sent_once_it_is_dead(
    path, store, monkeypatch, seconds
):
    monkeypatch.setattr(flush, "_BUSY", 4.0)
    with started(path) as journal:
        journal.end("FINISHED")
    held = path.open("r+b")
    assert take(held)
    if seconds is not None:
        threading.Timer(seconds, held.close).start()
    result = sync(path, store)
    held.close()
    if seconds is None:
        ((left, reason),) = result.left
        assert (left, "another process" in reason) == (path, True)
    else:
        assert result.left == ()
        assert runs_of(store)[0].info.status == "FINISHED"
