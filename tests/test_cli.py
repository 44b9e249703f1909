"""The command line: output, exit codes, response time."""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_run import small_run

from raybust import config as configuration
from raybust import data, methods
from raybust.cli import cli as group
from raybust.cli import main, output
from raybust.cluster import jobs
from raybust.config.inputs import Data
from raybust.errors import WorkError

SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))


def test_help_names_every_command():
    """test_layout checks that this imports nothing slow."""
    command = [sys.executable, "-m", "raybust", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in group.commands:
        assert name in done.stdout


def test_every_command_has_help(cli):
    for name, command in group.commands.items():
        shown = cli(name, "--help")
        assert shown.code == 0
        assert shown.err == ""
        for option in (p for p in command.params if p.param_type_name == "option"):
            assert option.opts[0] in shown.out


def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]);"
    code += "from raybust.cli import main; main(['methods'])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, str(gone)], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert found.stderr == (
        "raybust: the working directory is gone; change to a folder that exists (`cd`)\n"
    )


def test_no_command_shows_help(cli):
    shown = cli()
    text = shown.out + shown.err
    assert shown.code in (0, 2)
    assert len(text.splitlines()) > 10, "the help is squeezed into one line"
    assert "Commands:" in text


def test_version(cli):
    assert "raybust" in cli("--version").out


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (WorkError("it broke\n  badly"), 1, "raybust: it broke badly\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "raybust: [Errno 28] No space left on device; make room on that disk and rerun the same"
            " command to resume\n",
        ),
        (KeyboardInterrupt(), 130, "raybust: interrupted; rerun the same command to resume\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, text):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(type(group), "main", fail)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == code
    assert capsys.readouterr().err == text


class Last:
    """Receives Ctrl-C in its finalizer."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_finalizer_is_not_lost(monkeypatch, capsys):
    def work(*arguments, **options):
        Last()
        time.sleep(60)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(type(group), "main", work)
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130
    assert time.monotonic() - began < 50, "the wait went on"
    assert capsys.readouterr().err == "raybust: interrupted; rerun the same command to resume\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(type(group), "main", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


@pytest.mark.parametrize("name", ["methods", "datasets", "models"])
def test_listings(cli, name):
    table = cli(name)
    rows = json.loads(cli(name, "--json").out)
    assert table.code == 0
    assert len(table.out.splitlines()) == len(rows) + 2
    for row in rows:
        key = next(iter(row.values()))
        assert key in table.out
        one = cli(name, key)
        assert one.code == 0
        assert json.loads(cli(name, key, "--json").out)


@pytest.mark.parametrize("name", data.names())
def test_every_dataset_is_explained(cli, name):
    """Settings exist, and the example is a valid request but for its files."""
    facts = {row["fact"]: row["value"] for row in json.loads(cli("datasets", name, "--json").out)}
    assert facts["layout"]
    known = {f"data.{field.name}" for field in dataclasses.fields(Data)}
    assert set(facts["settings"].split()) <= known
    words = shlex.split(facts["example"])
    assert words[:3] == ["raybust", "train", f"data.name={name}"]
    config = configuration.compose(configuration.leaves_of_arguments(words[2:]), methods.get)
    assert config.data.name == name


def test_fields_of_a_method(cli):
    (row,) = json.loads(cli("methods", "gaussian", "--json").out)
    assert row["key"] == "method.sigma"
    assert (row["type"], row["default"], row["domain"]) == ("float", 0.25, "> 0")
    assert row["unit"]
    assert row["what"]


@pytest.mark.parametrize("name", methods.names())
def test_fields_of_every_method_are_told(cli, name):
    shown = cli("methods", name)
    assert shown.code == 0
    for field in dataclasses.fields(methods.get(name)):
        assert f"method.{field.name}" in shown.out


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_search_spaces_from_anywhere(cli, path, tmp_path, monkeypatch):
    """Packaged search spaces are found from any working directory."""
    monkeypatch.chdir(tmp_path)
    shown = cli("tune", f"search_spaces/{path.name}", "--dry-run")
    assert shown.code == 0, shown.err
    block = configuration.expand(yaml.safe_load(path.read_text())["search"], path)
    assert not {"include", "each"} & set(block)
    for key in block:
        assert f"\n{key} " in shown.out
    assert f"{len(block)} dimensions, " in shown.out
    assert not any(tmp_path.iterdir())


def test_a_file_of_the_user_goes_first(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("search_spaces").mkdir()
    Path("search_spaces/gaussian.yaml").write_text("search: {seed: {int: [0, 3]}}")
    shown = cli("tune", "search_spaces/gaussian.yaml", "--dry-run")
    assert "int in [0, 3]" in shown.out


def test_options_win_over_settings_over_file(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("name: file\nseed: 3\nout: file\n")
    shown = cli("train", "--dry-run", "a.yaml", "name=typed", "out=typed", "--name", "option")
    plain = yaml.safe_load(shown.out)
    assert (plain["name"], plain["out"], plain["seed"]) == ("option", "typed", 3)


def test_dry_run_starts_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("train", "--dry-run", "--address", "http://127.0.0.1:9").code == 0
    assert cli("train", "--dry-run", "data.name=cifar10").code == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("out", [(), ("--out", "~/runs"), ("out=../runs",)])
@pytest.mark.parametrize(
    "words",
    [("train",), ("tune", "search_spaces/quickstart.yaml"), ("certify", "two"),
     ("evaluate", "/mnt/raybust/runs/two"), ("doctor",)],
    ids=" ".join,
)  # fmt: skip
def test_a_job_may_not_write_into_its_own_working_directory(cli, words, out):
    if words == ("doctor",) and out == ("out=../runs",):
        pytest.skip("takes no settings")
    told = cli(*words, *out, "--address", "http://127.0.0.1:9")
    given = out[-1].removeprefix("out=") if out else "runs"
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"raybust: out: got {given}, ")
    assert "an absolute path that all nodes share" in told.err
    assert len(told.err.splitlines()) == 1


SERVER = "track.uri=http://head:5000"


@pytest.mark.parametrize(
    ("settings", "address", "typed", "certify", "browse"),
    [
        ((), None, None, "", "raybust ui"),
        (("out=/a b",), None, None, " --out '/a b'", "raybust ui --out '/a b'"),
        ((), "10.0.0.1:6379", None, " --address 10.0.0.1:6379", "raybust ui"),
        (("track.uri=sqlite:////own.db",), None, None, "",
         "MLFLOW_TRACKING_URI=sqlite:////own.db raybust ui"),
        ((SERVER,), None, None, "", "http://head:5000"),
        (("out=/shared", SERVER), "auto", "http://127.0.0.1:8265",
         " --out /shared --address http://127.0.0.1:8265", "http://head:5000, on the cluster"),
        (("out=/shared",), "auto", "http://127.0.0.1:8265",
         " --out /shared --address http://127.0.0.1:8265", "raybust ui --out /shared, on the head"),
    ],
)  # fmt: skip
def test_the_next_commands_work_as_they_are_printed(
    monkeypatch, settings, address, typed, certify, browse
):
    if typed is not None:
        monkeypatch.setenv(jobs.ADDRESS, typed)
    leaves = configuration.leaves_of_arguments(settings)
    config = configuration.compose(leaves, methods.get)
    assert output.certify_command("two", config, address) == f"raybust certify two{certify}"
    assert output.browse_command(config) == browse


@pytest.mark.parametrize(
    ("settings", "block"),
    [
        (("tune.finalists=0", "certify.norm=l0"), "seed: {int: [0, 3]}"),
        (("tune.storage='journal:a.log'",), "model.name: {choice: [resnet20, json:loads]}"),
        (("tune.storage=postgresql://host/name",), "seed: {int: [0, 3]}"),
    ],
)
def test_dry_run_refuses_nothing_that_can_be(cli, tmp_path, monkeypatch, settings, block):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(f"search:\n  {block}\n")
    shown = cli("tune", "a.yaml", *settings, "--dry-run")
    assert shown.code == 0, shown.err


def test_ui_dry_run(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/mlflow.db").touch()
    shown = cli("ui", "--dry-run", "--port", "5055")
    assert shown.code == 0
    assert "--host 127.0.0.1 --port 5055" in shown.out


def test_search_spaces_by_name(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_path = cli("tune", "search_spaces/quickstart.yaml", "--dry-run")
    for name in ("quickstart", "quickstart.yaml"):
        named = cli("tune", name, "--dry-run").out
        assert named.replace(f"({name})", "(search_spaces/quickstart.yaml)") == by_path.out
    wrong = cli("tune", "quickstrt", "--dry-run")
    assert wrong.code == 2
    assert "Did you mean 'quickstart'" in wrong.err
    (tmp_path / "quickstart").write_text("search: {train.lr: {float: [0.1, 0.2]}}\n")
    assert "1 dimensions" in cli("tune", "quickstart", "--dry-run").out, "a file comes first"


def test_a_run_that_learns_nothing_says_so(tmp_path, cli):
    """After the second epoch and at the end; a run that learns says nothing."""
    words = ("train", "train.epochs=3", "model.width=4", "certified_fast.every=0")
    lost = cli(*words, "train.lr=1e-9", "--name", "lost", "--out", tmp_path)
    said = [line for line in lost.err.splitlines() if "predicting the largest class alone" in line]
    assert [line.partition(" epochs")[0] for line in said] == [
        "warning: after 2",
        "warning: after 3",
    ]
    assert "now 1e-09" in said[0]
    found = cli(*words, "train.epochs=3", "--name", "found", "--out", tmp_path)
    assert (found.code, "largest class alone" in found.err) == (0, False)


def test_a_dry_run_begins_with_what_differs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("train: {epochs: 3, batch_size: 128}\nmethod: {name: gaussian}\n")
    shown = cli("train", "mine.yaml", "method.sigma=1/2", "--workers", "2", "--dry-run").out
    assert shown.splitlines()[:5] == [
        "# Differs from the defaults:",
        "#   method.name: gaussian   (mine.yaml)",
        "#   method.sigma: 0.5       (command line)",
        "#   train.epochs: 3         (mine.yaml)",
        "#   cluster.workers: 2      (--workers)",
    ]
    assert "tune" not in yaml.safe_load(shown)
    whole = yaml.safe_load(cli("train", "mine.yaml", "--dry-run", "--verbose").out)
    assert {"tune", "certify", "evaluate", "corruptions"} < set(whole)
    assert cli("train", "--dry-run").out.startswith("# Everything is the default.\n")


@pytest.mark.parametrize(
    ("command", "section"), [("certify", "certify.n=5000"), ("evaluate", "evaluate.steps=3")]
)
def test_a_dry_run_of_a_measurement_tells_the_runs_values_from_the_users(
    cli, tmp_path, command, section
):
    small_run(tmp_path / "mine", train__lr=0.01)
    shown = cli(command, "mine", section, "--out", tmp_path, "--dry-run").out
    told = [line for line in shown.splitlines() if line.startswith("#   ")]
    key, value = section.split("=")
    assert any(f"{key}: {value} " in line and "(command line)" in line for line in told)
    assert any("train.lr: 0.01 " in line and "(mine)" in line for line in told)
    assert "train" not in yaml.safe_load(shown)
