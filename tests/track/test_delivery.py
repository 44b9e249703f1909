import contextlib
import json
import math
import os
import shutil
import sqlite3
import sys
import threading

import pytest
from tracking import deliver, lines, points, python, runs_of

from raybust.disk.lock import take
from raybust.track import Journal
from raybust.track import client as client_module
from raybust.track import delivery as delivery_module
from raybust.track.ack import ack_path, load_ack, rejected_path
from raybust.track.client import ensure_experiment, ensure_run
from raybust.track.delivery import Delivery, UndeliveredError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def started(path, key="key", parent=None, **params):
    journal = Journal(path)
    journal.start(
        key,
        "e",
        f"name of {key}",
        tags={"method": "gaussian"},
        params=params,
        parent_key=parent,
    )
    return journal


def steps(uri, key="loss"):
    return [step for _, name, step, _ in points(uri) if name == key]


def test_a_whole_run_arrives(path, store, client, tmp_path):
    (path.parent / "plots").mkdir(parents=True)
    (path.parent / "plots" / "a.svg").write_text("<svg/>")
    (tmp_path / "b.tsv").write_text("idx")
    with started(path, lr=0.1, width=32) as journal:
        journal.text("seed: 0", "config.yaml")
        for epoch in (1, 2):
            journal.metrics({"loss": 1 / epoch, "certified_fast/acr": epoch}, epoch)
        journal.artifact(path.parent / "plots", "plots")
        journal.artifact(tmp_path / "b.tsv", "certificates")
        journal.tags({"method": "macer"})
        journal.end("FINISHED", "pruned")
    assert deliver(path, store).rejected == 0
    (run,) = runs_of(store)
    assert run.info.run_name == "name of key"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == lines(path)[0]["t"]
    assert run.info.end_time == lines(path)[-1]["t"]
    assert run.data.params == {"lr": "0.1", "width": "32"}
    assert run.data.metrics == {"loss": 0.5, "certified_fast/acr": 2.0}
    expected = {"method": "macer", "raybust.stop_reason": "pruned", "raybust.attempt": "1"}
    assert expected.items() <= run.data.tags.items()
    assert steps(store) == [1, 2]
    root = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    files = sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
    assert files == ["certificates/b.tsv", "config.yaml", "plots/a.svg"]
    assert (root / "config.yaml").read_text() == "seed: 0"


def test_the_dataset_arrives_once_however_often_it_is_sent(path, store):
    dataset = {"name": "d" * 600, "digest": "0123456789" * 5, "source": "/data/d.npz"}
    with Journal(path) as journal:
        journal.start("key", "e", "a run", dataset=dataset)
    for _ in range(2):
        assert deliver(path, store).rejected == 0
        ack_path(path).unlink()
    (run,) = runs_of(store)
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "d" * 497 + "..."
    assert found.dataset.digest == ("0123456789" * 5)[:36]
    assert json.loads(found.dataset.source) == {"uri": "/data/d.npz"}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_nan_and_infinities_arrive_once_however_often_they_are_sent(path, store, client):
    with started(path) as journal:
        journal.metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    deliver(path, store)
    ack_path(path).unlink()
    deliver(path, store)
    (run,) = runs_of(store)
    history = {key: client.get_metric_history(run.info.run_id, key) for key in "abc"}
    assert {key: len(value) for key, value in history.items()} == {"a": 1, "b": 1, "c": 1}
    assert math.isnan(history["a"][0].value)
    assert history["b"][0].value == sys.float_info.max == -history["c"][0].value


def test_dying_between_sending_and_acknowledging_neither_doubles_nor_loses(
    path, store, monkeypatch
):
    journal = started(path, lr=0.1)
    for step in range(1, 7):
        journal.metrics({"loss": step / 10, "nan": math.nan}, step)
        with monkeypatch.context() as patch:

            def die(*_):
                raise KeyboardInterrupt  # no handler of ours may stand in for a death

            patch.setattr(delivery_module, "save_ack", die)
            with pytest.raises(KeyboardInterrupt):
                Delivery(path, store).step()
        if step % 2:
            deliver(path, store)
    journal.end("FINISHED")
    deliver(path, store)
    assert len(runs_of(store)) == 1
    assert steps(store) == steps(store, "nan") == [1, 2, 3, 4, 5, 6]
    assert load_ack(path).offset == path.stat().st_size


def test_what_failed_after_arriving_is_not_doubled(path, store, monkeypatch):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
    delivery = Delivery(path, store)
    original = delivery_module.Delivery._send_items

    def lose_the_answer(self, run_id, items):
        original(self, run_id, items)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(delivery_module.Delivery, "_send_items", lose_the_answer)
        for _ in range(2):
            with pytest.raises(UndeliveredError, match="the answer was lost"):
                delivery.step()
    assert delivery.step()
    assert steps(store) == [1]


def test_points_that_the_store_has_are_not_sent_again_from_a_rewritten_journal(path, store):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.metrics({"loss": 2.0}, 2)
    deliver(path, store)
    shutil.rmtree(path.parent)
    with started(path) as journal:
        journal.metrics({"loss": 1.1}, 1)
        journal.metrics({"loss": 3.0}, 3)
    deliver(path, store)
    assert [(step, value) for *_, step, value in points(store)] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_another_journal_in_the_place_of_an_acknowledged_one_is_delivered(path, store):
    with started(path, "first"):
        pass
    deliver(path, store)
    path.unlink()
    with started(path, "second") as journal:
        journal.metrics({"loss": 1.0}, 1)
    deliver(path, store)
    assert sorted(r.info.run_name for r in runs_of(store)) == ["name of first", "name of second"]


def test_a_journal_that_went_back_is_delivered_from_its_beginning(path, store):
    journal = started(path)
    for step in range(5):
        journal.metrics({"loss": step}, step)
    deliver(path, store)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with Journal(path) as journal:
        for step in range(3):
            journal.metrics({"loss": step, "acr": step}, step)
    deliver(path, store)
    assert steps(store) == [0, 1, 2, 3, 4]
    assert steps(store, "acr") == [0, 1, 2]


def test_a_changed_param_is_put_aside_and_the_rest_goes_on(path, store, tmp_path):
    with started(path, lr=0.1):
        pass
    deliver(path, store)
    other = tmp_path / "other" / "journal.jsonl"
    with started(other, lr=0.2, momentum=0.9, ema=0) as journal:
        journal.metrics({"loss": 1.0}, 1)
    assert deliver(other, store).rejected == 1
    (run,) = runs_of(store)
    assert run.data.params == {"lr": "0.1", "momentum": "0.9", "ema": "0"}
    assert run.data.metrics == {"loss": 1.0}
    (refused,) = lines(rejected_path(other))
    assert refused["Param"] == "lr"
    assert "Changing param values is not allowed" in refused["reason"]


def test_requests_stay_within_mlflows_limits(path, store, monkeypatch):
    sizes = []
    original = delivery_module.open_client

    def counting(uri):
        client = original(uri)
        send = client.log_batch

        def log_batch(run_id, metrics, params, tags):
            sizes.append((len(metrics), len(params), len(tags)))
            send(run_id, metrics, params, tags)

        client.log_batch = log_batch
        return client

    monkeypatch.setattr(delivery_module, "open_client", counting)
    with started(path, **{f"p{i}": "é" * 7000 for i in range(120)}) as journal:
        journal.tags({f"tag{i}": i for i in range(120)})
        for step in range(2500):
            journal.metrics({"loss": step}, step)
    assert deliver(path, store).rejected == 0
    (run,) = runs_of(store)
    assert len(run.data.params) == 120
    assert len(steps(store)) == 2500
    assert max(sum(size) for size in sizes) <= 1000
    assert max(size[1] for size in sizes) <= 100 >= max(size[2] for size in sizes)
    assert len(sizes) < 10


def test_any_key_and_value_is_made_to_fit(path, store):
    long = "x" * 300
    params = {"a@b": 1, "/up/../down//": 2, long + "1": 3, long + "2": 4, "": 5}
    params |= {"long": "é" * 9000, "odd": "a\0b\udc80", "empty": "", "none": None}
    with started(path, **params) as journal:
        journal.tags({"tag": "t" * 9000})
        journal.metrics({"acc@0.5 (%)": 1.0}, 1)
    assert deliver(path, store).rejected == 0
    (run,) = runs_of(store)
    found = run.data.params
    assert {"a_b": "1", "up/down": "2", "_": "5", "empty": "", "none": "None"}.items() <= (
        found.items()
    )
    assert sorted(found[key] for key in found if key.startswith("xxx")) == ["3", "4"]
    assert (len(found["long"]), found["long"][-4:]) == (6000, "é...")
    assert found["odd"] == "ab?"
    assert len(run.data.tags["tag"]) == 8000
    assert run.data.metrics == {"acc_0.5 ___": 1.0}


def test_child_and_parent_arrive_in_any_order(tmp_path, store):
    child, parent = tmp_path / "s" / "t" / "journal.jsonl", tmp_path / "s" / "journal.jsonl"
    with started(child, 'it\'s a "trial"', parent="sweep"):
        pass
    with started(parent, "sweep", trials=8) as journal:
        journal.end("FINISHED")
    deliver(child, store)
    deliver(parent, store)
    ack_path(child).unlink()
    deliver(child, store)
    runs = {run.info.run_name: run for run in runs_of(store)}
    assert set(runs) == {"name of sweep", 'name of it\'s a "trial"'}
    sweep, trial = runs["name of sweep"], runs['name of it\'s a "trial"']
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert sweep.data.params == {"trials": "8"}
    assert (sweep.info.status, trial.info.status) == ("FINISHED", "RUNNING")


def test_a_run_that_is_taken_up_again_runs_again(path, store):
    with started(path) as journal:
        journal.end("KILLED", "lost")
    deliver(path, store)
    with Journal(path) as journal:
        journal.start("key", "e", "name of key")
        deliver(path, store)
        (run,) = runs_of(store)
        assert (run.info.status, run.data.tags["raybust.attempt"]) == ("RUNNING", "2")
        journal.end("FINISHED")
    deliver(path, store)
    (run,) = runs_of(store)
    assert (run.info.status, run.data.tags["raybust.stop_reason"]) == ("FINISHED", "finished")


def test_two_processes_that_begin_together_make_one_store_and_one_run_of_a_key(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = """
import sys
from raybust.track import Flusher, Journal
from raybust.track.client import load_mlflow
load_mlflow()
for i in range(3):
    path = f"{sys.argv[1]}/{i}/journal.jsonl"
    with Journal(path) as journal:
        journal.start(f"trial {i}", "e", f"trial {i}", parent_key="sweep")
        journal.metrics({"of " + sys.argv[1][-1]: 1.0}, 1)
    assert Flusher(path, sys.argv[2]).close(60), "not delivered"
"""
    processes = [python(code, tmp_path / name, store) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    runs = {run.info.run_name: run for run in runs_of(store)}
    assert sorted(runs) == ["sweep", "trial 0", "trial 1", "trial 2"]
    assert len(runs_of(store)) == 4
    assert runs["trial 1"].data.metrics == {"of a": 1.0, "of b": 1.0}


def test_machines_without_a_common_lock_agree_on_one_run(store, client, monkeypatch):
    experiment = ensure_experiment(client, store, "e", "")
    both_searched, original, first = threading.Barrier(2), client_module.find_key, {}

    def find_key(*arguments):
        found = original(*arguments)
        if first.setdefault(threading.get_ident(), True):
            first[threading.get_ident()] = False
            assert found is None
            both_searched.wait(10)
        return found

    monkeypatch.setattr(client_module, "find_key", find_key)
    made = []
    threads = [
        threading.Thread(
            target=lambda: made.append(ensure_run(client, experiment, "key", "name", 1)[0])
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    again, existed = ensure_run(client, experiment, "key", "name", 1)
    assert existed
    assert len(runs_of(store)) == 1
    assert again in made


def test_a_run_whose_maker_died_at_once_is_taken_over(store, client, monkeypatch):
    monkeypatch.setattr(client_module, "_NUMBER_SECONDS", 0.1)
    experiment = ensure_experiment(client, store, "e", "")
    made = client.create_run(experiment, tags={"raybust.run_key": "key"})
    assert ensure_run(client, experiment, "key", "name", 1) == (made.info.run_id, True)
    assert "raybust.number" in client.get_run(made.info.run_id).data.tags


def test_a_store_that_lost_its_runs_gets_the_whole_run(path, store):
    journal = started(path, lr=0.1)
    journal.metrics({"loss": 1.0}, 1)
    delivery = deliver(path, store)
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")
        database.commit()
    journal.metrics({"loss": 2.0}, 2)
    with pytest.raises(UndeliveredError, match="not found"):
        delivery.step()
    assert delivery.step()
    assert steps(store) == [1, 2]
    (run,) = runs_of(store)
    assert run.data.params == {"lr": "0.1"}


def test_a_run_in_the_trash_keeps_its_journal_until_it_is_restored(path, store, client):
    journal = started(path)
    delivery = deliver(path, store)
    (run,) = runs_of(store)
    client.delete_run(run.info.run_id)
    journal.metrics({"loss": 1.0}, 1)
    with pytest.raises(UndeliveredError, match="active"):
        delivery.step()
    client.restore_run(run.info.run_id)
    assert delivery.step()
    assert (steps(store), delivery.rejected) == ([1], 0)


def test_a_file_that_fails_holds_up_nothing_else(path, store, monkeypatch):
    path.parent.mkdir()
    (path.parent / "late.txt").write_text("late")
    journal = started(path)
    journal.artifact(path.parent / "gone.txt")
    journal.artifact(path.parent / "late.txt")
    journal.text("x", "../inside.txt")
    journal.text("fine", "fine.txt")
    delivery = Delivery(path, store)
    with monkeypatch.context() as patch:
        from mlflow import MlflowClient

        send = MlflowClient.log_artifact

        def refuse(client, run_id, file, folder=None):
            if file.endswith("late.txt"):
                raise OSError("no space")
            send(client, run_id, file, folder)

        patch.setattr(MlflowClient, "log_artifact", refuse)
        with pytest.raises(UndeliveredError, match="no space"):
            delivery.step()
        journal.metrics({"loss": 1.0}, 1)
        with pytest.raises(UndeliveredError, match="no space"):
            delivery.step()
        assert steps(store) == [1]
        assert next((path.parent.parent / "mlartifacts").rglob("fine.txt")).read_text() == "fine"
        assert not load_ack(path).done(path.stat().st_size)
    assert deliver(path, store).rejected == 0
    (run,) = runs_of(store)
    root = path.parent.parent / "mlartifacts" / run.info.run_id / "artifacts"
    assert sorted(os.listdir(root)) == ["fine.txt", "inside.txt", "late.txt"]
    assert [entry["artifact"] for entry in lines(rejected_path(path))] == ["gone.txt"]


def test_a_damaged_line_costs_that_line_alone(path, store):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.metrics({"loss": 2.0}, 2)
    content = path.read_bytes().splitlines(keepends=True)
    content[1] = b"\0" * (len(content[1]) - 1) + b"\n"
    path.write_bytes(b"".join(content))
    assert deliver(path, store).rejected == 1
    assert steps(store) == [2]


def test_a_line_that_is_still_being_written_waits(path, store):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    delivery = Delivery(path, store)
    assert not delivery.step()
    assert steps(store) == []
    path.write_bytes(content)
    assert delivery.step()
    assert steps(store) == [1]


def test_a_journal_that_another_process_delivers_is_left_to_it(path, store):
    with started(path):
        pass
    with path.open("r+b") as held:
        assert take(held)
        with pytest.raises(UndeliveredError, match="another process"):
            Delivery(path, store).step()
    assert Delivery(path, store).step()


def test_a_locked_database_is_tried_again(path, store, monkeypatch):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        delivery = deliver(path, store)
        journal.metrics({"loss": 2.0}, 2)
    from mlflow.store.db import utils

    text = utils.sql.text
    monkeypatch.setattr(utils.sql, "text", lambda t: text(t.replace("= 20000", "= 50")))
    blocker = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UndeliveredError, match="locked"):
        delivery.step()
    blocker.rollback()
    assert delivery.step()
    assert (steps(store), delivery.rejected) == ([1, 2], 0)
