"""Evaluation under attack over Ray: the same table for any sharding, after a kill, in MLflow."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import kit
import pytest

from raybust import runs
from raybust.cluster import attacked
from raybust.config import Leaf, leaves_of_arguments
from raybust.errors import RequestError

SMALL = (
    "evaluate.examples=24", "evaluate.shard=6", "evaluate.steps=5", "evaluate.queries=30",
    "evaluate.targets=2", "evaluate.eps=[0.02,0.1]",
)  # fmt: skip


def load(out, folder, *settings):
    return runs.load(folder, [Leaf("out", str(out), "test"), *leaves_of_arguments(settings)])


@pytest.fixture(scope="module")
def finished(trained):
    """(what one worker found, lines said, the run, its folder)."""
    out, folder, _ = trained
    said = []
    run = load(out, folder, *SMALL)
    found = attacked.evaluate(run, say=said.append, workers=1)
    return found, said, run, out


@pytest.mark.cluster
def test_table_metrics_and_artifacts(finished):
    found, said, run, out = finished
    lines = found.files["rows"].read_text().splitlines()
    header = json.loads(lines[0].removeprefix("# "))
    assert (header["examples"], header["eps"]) == (24, [0.02, 0.1])
    assert len(lines) == 2 + 24 * 3
    assert "**robust**" in found.text()
    assert str(found.files["rows"]) in found.text()
    assert sum("robust so far" in line for line in said) == 4
    plain = json.loads(json.dumps(found.plain()))
    assert plain["metrics"]["attacked/robust_accuracy"] <= plain["clean"]
    record = json.loads(found.files["record 0.1"].read_text())
    assert len(record) == 12
    stored = kit.runs_of(out)[run.folder.name]
    assert stored.data.metrics["attacked/robust_accuracy"] == pytest.approx(
        found.metrics["attacked/robust_accuracy"]
    )
    assert "raybust.distrust" in stored.data.tags
    names = {path.name for path in found.files.values()}
    assert names <= {path.rpartition("/")[2] for path in kit.artifacts_of(out, stored, "attacked")}


@pytest.mark.cluster
def test_two_workers_and_a_torn_table_end_with_the_same_bytes(finished, tmp_path):
    found, _, run, _ = finished
    whole = found.files["rows"].read_bytes()
    other = replace(run, folder=tmp_path / run.folder.name, uid=None)
    again = attacked.evaluate(other, say=lambda _: None, workers=2)
    assert again.files["rows"].read_bytes() == whole
    for share in (0.4, 0.9):
        again.files["rows"].write_bytes(whole[: int(share * len(whole))])
        said = []
        attacked.evaluate(other, say=said.append, workers=2)
        assert again.files["rows"].read_bytes() == whole
        assert any("resuming" in line for line in said)
    said = []
    attacked.evaluate(other, say=said.append)
    assert "4 of 4 shards are done" in said[-1]


@pytest.mark.cluster
def test_another_protocol_needs_no_resume(finished, tmp_path):
    _, _, run, _ = finished
    other = replace(run, folder=tmp_path / "run", uid=None)
    attacked.evaluate(other, say=print)
    section = replace(other.config.evaluate, seed=1)
    changed = replace(other, config=replace(other.config, evaluate=section))
    with pytest.raises(RequestError, match=r"seed: 0 -> 1.*--no-resume"):
        attacked.evaluate(changed, say=print)
    attacked.evaluate(changed, say=print, resume=False)
    assert len(list((other.folder / "attacked").glob("*.tsv"))) == 2


@pytest.mark.cluster
def test_without_attacks_it_is_clean_accuracy(finished):
    found, _, run, _ = finished
    section = replace(run.config.evaluate, attacks=())
    clean = attacked.evaluate(replace(run, config=replace(run.config, evaluate=section)), say=print)
    assert clean.text().startswith("clean accuracy")
    assert clean.metrics["attacked/clean_accuracy"] == pytest.approx(found.result["clean"])
    assert not clean.files


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_that_are_killed_resume_to_the_same_table(finished, tmp_path):
    """A driver of its own, killed with all its processes when some shards are there."""
    found, _, run, out = finished
    whole = found.files["rows"].read_bytes()
    script = textwrap.dedent(
        f"""
        import os, sys
        from dataclasses import replace
        from pathlib import Path
        from raybust import runs
        from raybust.cluster import attacked
        from raybust.config import Leaf, leaves_of_arguments
        leaves = [Leaf("out", {str(out)!r}, "t"), *leaves_of_arguments({SMALL!r})]
        run = runs.load(Path({str(run.folder)!r}), leaves)
        run = replace(run, folder=Path({str(tmp_path / "run")!r}), uid=None)
        def say(text):
            print(text, flush=True)
        attacked.evaluate(run, say=say, workers=2)
        """
    )
    command = [sys.executable, "-c", script]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in first.stdout:
        if "robust so far" in line:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    path = tmp_path / "run" / "attacked" / found.files["rows"].name
    assert path.read_bytes() != whole
    said = []
    other = replace(run, folder=path.parent.parent, uid=None)
    attacked.evaluate(other, say=said.append, workers=2)
    assert any("resuming" in line for line in said)
    assert path.read_bytes() == whole
