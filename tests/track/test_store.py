import subprocess
import sys
from types import SimpleNamespace

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool
from tracking import deliver, free_port, python

from raybust.errors import RequestError
from raybust.track import (
    Journal,
    environment,
    find_run,
    prepare,
    redact,
    resolve_uri,
    safe_uri,
    source_tags,
    ui_command,
)
from raybust.track.client import reason_of


def resolve(uri=None, out="runs"):
    return resolve_uri(SimpleNamespace(uri=uri), out)


def test_the_configuration_wins_over_the_environment_over_the_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert resolve() == f"sqlite:///{tmp_path}/other.db"
    assert resolve("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert resolve("postgresql+psycopg2://h/db") == "postgresql+psycopg2://h/db"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///x/mlruns",
        "mlruns",
        "./mlruns",
        "/x/mlruns",
        "sqlite://",
        "sqlite:///:memory:",
        "ftp://u:pw5@h",
        "HTTPX://u:pw5@h",
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_other_stores_are_refused_with_what_is_allowed(uri, by_environment, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RequestError) as error:
        resolve(None if by_environment else uri)
    assert str(error.value).startswith("MLFLOW_TRACKING_URI" if by_environment else "track.uri")
    assert "sqlite:///PATH/mlflow.db" in str(error.value)
    assert "pw5" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_remote_folder_needs_a_given_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RequestError, match=r"track\.uri"):
        resolve(out="s3://bucket/runs")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://h:5000", "http://h:5000"),
        ("https://u:pw@h:5000/x", "https://u:***@h:5000/x"),
        ("https://u:p@w@h", "https://u:***@h"),
        ("postgresql://u:p/w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?user=u&password=pw", "postgresql://h/db?user=u&password=***"),
        ("https://h/x?api_token=pw&y=1", "https://h/x?api_token=***&y=1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri, shown):
    assert safe_uri(uri) == shown
    assert redact(f"no answer\nfrom {uri}", uri) == f"no answer from {shown}"


def test_a_decoded_password_in_an_error_is_hidden_too():
    assert redact("auth of u with p@w failed", "http://u:p%40w@h") == "auth of u with *** failed"


def test_an_error_of_the_database_is_told_without_its_statement(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'x.db'}", poolclass=NullPool)
    query = sqlalchemy.text("select * from runs where name = :name")
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.OperationalError) as error:
        connection.execute(query, {"name": "x"})
    assert "select" in str(error.value)
    assert reason_of(error.value, "") == "(sqlite3.OperationalError) no such table: runs"
    error.value.add_detail(
        "raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block"
        " if this flush is occurring prematurely"
    )
    assert reason_of(error.value, "") == "(sqlite3.OperationalError) no such table: runs"


def test_preparing_makes_schema_experiment_and_artifact_folder_known(tmp_path):
    code = "import sys; from raybust.track import prepare; print(prepare(*sys.argv[1:]))"
    out = tmp_path / "new" / "runs"
    uri = f"sqlite:///{out / 'mlflow.db'}"
    result = subprocess.run(
        [sys.executable, "-c", code, uri, out, "mine"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (result.stdout, result.stderr) == ("None\n", "")
    from raybust.track.client import open_client

    experiment = open_client(uri).get_experiment_by_name("mine")
    assert experiment.artifact_location == str(out / "mlartifacts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert prepare(uri, out, "mine") is None


def test_a_store_that_cannot_be_used_is_refused(tmp_path, store, client):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.db").write_bytes(b"no database" * 1000)
    client.delete_experiment(client.create_experiment("deleted"))
    for uri, experiment, reason in [
        (f"sqlite:///{tmp_path}/file/mlflow.db", "e", "file"),
        (f"sqlite:///{tmp_path}/broken.db", "e", "not a database"),
        (f"sqlite:///{tmp_path}", "e", "unable to open"),
        (f"postgresql://u:pw5@127.0.0.1:{free_port()}/db", "e", "cannot be used"),
        (store, "deleted", "restore it"),
        (store, "x" * 600, "length"),
    ]:
        with pytest.raises(RequestError, match=reason) as error:
            prepare(uri, tmp_path, experiment)
        assert "\n" not in str(error.value)
        assert "pw5" not in str(error.value)


def test_a_database_held_for_writing_is_refused(store, tmp_path, client, monkeypatch):
    import sqlite3

    prepare(store, tmp_path, "e")
    original = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda file, timeout: original(f"file:{file}?mode=ro", uri=True)
    )
    with pytest.raises(RequestError, match="readonly"):
        prepare(store, tmp_path, "e")


def test_a_server_that_is_away_is_a_warning(tmp_path):
    warning = prepare(f"http://127.0.0.1:{free_port()}", tmp_path, "e")
    assert "cannot be used now" in warning
    assert "\n" not in warning


def test_a_run_is_found_by_name_id_or_key(store, tmp_path):
    for key, name in [("k1", "first"), ("k2", "second's"), ("k3", "first")]:
        with Journal(tmp_path / key / "journal.jsonl") as journal:
            journal.start(key, "e", name, tags={"method": "macer"}, params={"lr": 1})
            journal.metrics({"acr": 0.5}, 1)
            journal.end("FINISHED")
        deliver(journal.path, store)
    newest = find_run(store, "first")
    assert (newest.run_key, newest.status, newest.experiment) == ("k3", "FINISHED", "e")
    assert (newest.params, newest.metrics) == ({"lr": "1"}, {"acr": 0.5})
    assert newest.tags["method"] == "macer"
    assert find_run(store, newest.run_id) == newest
    assert find_run(store, "k1").name == "first"
    assert find_run(store, "second's").run_key == "k2"
    with pytest.raises(RequestError, match=r"unknown run 'frist'\. Did you mean 'first'"):
        find_run(store, "frist")
    with pytest.raises(RequestError, match="unknown run"):
        find_run(store, "a'b\"c")


def test_searching_a_store_that_is_not_there_makes_none(tmp_path):
    with pytest.raises(RequestError, match="unknown run 'x'"):
        find_run(f"sqlite:///{tmp_path}/mlflow.db", "x")
    with pytest.raises(RequestError, match=r"^http://u:\*\*\*@127"):
        find_run(f"http://u:pw@127.0.0.1:{free_port()}", "x")
    assert list(tmp_path.iterdir()) == []


def test_the_ui_is_local_and_its_command_shows_no_password(tmp_path):
    command, extra = ui_command("postgresql://u:pw@h/db", tmp_path, port=1)
    assert "pw" not in " ".join(command)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--allowed-hosts") + 1] == "localhost:*,127.0.0.1:*"
    assert extra["MLFLOW_BACKEND_STORE_URI"] == "postgresql://u:pw@h/db"
    assert extra["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert extra["MLFLOW_DISABLE_TELEMETRY"] == "true"
    with pytest.raises(RequestError, match=r"open http://u:\*\*\*@h"):
        ui_command("http://u:pw@h", tmp_path)
    with pytest.raises(RequestError, match="nothing to show"):
        ui_command(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


def test_the_environment_holds_versions_and_a_commit_only(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYBUST_SECRET", "s3cret")
    found = environment(tmp_path)
    assert {"raybust", "python", "torch", "ray", "mlflow", "optuna", "platform"} <= set(found)
    assert "git_commit" not in found
    assert "s3cret" not in str(found)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(git + arguments, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert environment(tmp_path)["git_commit"] == head.stdout.strip()
    commit, dirty = "mlflow.source.git.commit", "mlflow.source.git.dirty"
    told = source_tags(environment(tmp_path))
    assert (told[commit], told[dirty]) == (head.stdout.strip(), "False")
    told = source_tags({"raybust": "1", "git_commit": "abc-dirty"})
    assert (told[commit], told[dirty]) == ("abc", "True")
    assert commit not in source_tags({"raybust": "1"})


def test_the_environment_imports_nothing_heavy():
    code = """
import sys
from raybust.track import environment
environment()
print({"mlflow", "ray", "torch", "optuna"} & set(sys.modules))
"""
    assert python(code).communicate()[0].strip() == "set()"
