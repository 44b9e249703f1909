"""MLflow and Optuna on a real PostgreSQL with eight concurrent writers: no point lost, no lock
error. The tests start their own server in a temporary folder, on loopback."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from tracking import free_port, python, runs_of

from raybust.track import prepare

pytestmark = pytest.mark.postgres

WRITERS, STEPS, TRIALS = 8, 60, 12
PASSWORD = "not-in-any-log"


@pytest.fixture(scope="module")
def postgres():
    """A fresh server's URI without the database name, with a password, and the server's log.
    It has two databases, because MLflow and Optuna both keep their version in `alembic_version`."""
    pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or os.getuid():
        pytest.skip("needs Debian's package postgresql, and root to start it as its user")
    folder = Path(tempfile.mkdtemp(prefix="raybust-postgres-"))
    shutil.chown(folder, "postgres")
    user, port = pwd.getpwnam("postgres"), free_port()

    def run(program, *arguments):
        subprocess.run(
            [binaries[-1] / program, *arguments], check=True, cwd=folder,
            user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    secret = folder / "secret"
    secret.write_text(PASSWORD)
    shutil.chown(secret, "postgres")
    run(
        "initdb",
        "-D",
        folder / "data",
        "-A",
        "scram-sha-256",
        "-U",
        "raybust",
        f"--pwfile={secret}",
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", folder / "data", "-l", folder / "log", "-o", options, "-w", "start")
    uri = f"postgresql://raybust:{PASSWORD}@127.0.0.1:{port}/"
    for name in ("mlflow", "optuna"):
        run("psql", uri + "postgres", "-qc", f"create database {name}")
    yield uri, folder / "log"
    with contextlib.suppress(subprocess.CalledProcessError):
        run("pg_ctl", "-D", folder / "data", "-m", "fast", "-w", "stop")
    shutil.rmtree(folder)


def all_of(code, *arguments):
    """Runs code in eight processes at once, each with its number; returns their output."""
    started = [python(code, number, *arguments) for number in range(WRITERS)]
    said = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0] * WRITERS, said
    return said


WRITER = """
import sys
from raybust.track import Flusher, Journal
number, uri, folder, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with Journal(f"{folder}/{number}/journal.jsonl") as journal:
    flusher = Flusher(journal.path, uri, interval_s=0.05)
    journal.start(number, "eight", f"run {number}", params={"lr": 0.1}, parent_key="sweep")
    for step in range(steps):
        journal.metrics({key: step / 7 for key in "abcde"}, step)
    journal.end("FINISHED")
    assert flusher.close(240), "not all was sent"
    print(flusher.rejected)
"""


def rows(uri, query):
    import psycopg

    with psycopg.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_eight_runs_write_at_a_time(postgres, tmp_path):
    server, log = postgres
    uri = server + "mlflow"
    assert prepare(uri, tmp_path, "eight") is None
    assert all_of(WRITER, uri, tmp_path, STEPS) == ["0\n"] * WRITERS
    runs = {run.info.run_name: run for run in runs_of(uri, "eight")}
    assert sorted(runs) == sorted(["sweep", *(f"run {number}" for number in range(WRITERS))])
    found = rows(uri, "select run_uuid, key, step from metrics")
    assert len(found) == len(set(found)) == WRITERS * STEPS * 5
    assert not [word for word in ("deadlock", "ERROR:  could not", "lock timeout")
                if word in log.read_text()]  # fmt: skip
    assert PASSWORD not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl*"))


ASKER = """
import sys, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="eight", storage=sys.argv[2])
for _ in range(int(sys.argv[3])):
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    for epoch in range(5):
        trial.report(x * epoch, epoch)
    study.tell(trial, x)
"""


def test_eight_searchers_share_a_study(postgres):
    import optuna

    server, log = postgres
    uri = server + "optuna"
    optuna.create_study(study_name="eight", storage=uri)
    all_of(ASKER, uri, TRIALS)
    trials = optuna.load_study(study_name="eight", storage=uri).get_trials()
    assert sorted(trial.number for trial in trials) == list(range(WRITERS * TRIALS))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert all(len(trial.intermediate_values) == 5 for trial in trials)
    assert "deadlock" not in log.read_text()


def test_a_sweep_keeps_its_record_there(postgres, tmp_path):
    """`tune.storage` as set by a user, through raybust's own study."""
    from raybust import config as configuration
    from raybust import methods
    from raybust.search.space import Space
    from raybust.search.study import Study

    uri = postgres[0] + "optuna"
    leaves = configuration.leaves_of_arguments(["method.name=standard", f"tune.storage={uri}"])
    config = configuration.compose(leaves, methods.get)
    space = Space.parse({"train.lr": {"float": [0.01, 0.1], "default": 0.05}})
    study = Study(config, space, tmp_path, "kept", [])
    number, _ = study.ask()
    study.report(number, 1, 0.5, {config.tune.metric: 0.5})
    study.complete(number)
    again = Study(config, space, tmp_path, "kept", [])
    assert [record.state for record in again.records()] == ["COMPLETE"]
    assert not list(tmp_path.glob("*.db"))


def test_mlflow_and_optuna_cannot_share_a_database(postgres, tmp_path):
    from raybust import config as configuration
    from raybust import methods
    from raybust.errors import RequestError
    from raybust.search.space import Space
    from raybust.search.study import Study

    uri = postgres[0] + "mlflow"
    prepare(uri, tmp_path, "eight")
    leaves = configuration.leaves_of_arguments(["method.name=standard", f"tune.storage={uri}"])
    config = configuration.compose(leaves, methods.get)
    with pytest.raises(RequestError, match=r"tune\.storage: .* its own database") as refused:
        Study(config, Space.parse({"train.lr": {"float": [0.01, 0.1]}}), tmp_path, "x", [])
    assert PASSWORD not in str(refused.value)
