"""Evaluation under attack over Ray: the same table for any sharding, after a kill, in MLflow."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import kit
import pytest

from raybust import methods
from raybust.config import Leaf, compose, leaves_of_arguments
from raybust.errors import RequestError
from raybust.stages import attacked, training
from raybust.stages.measurement import Options
from raybust.trained import load_trained

SMALL = (
    "evaluate.examples=24", "evaluate.shard=6", "evaluate.steps=5", "evaluate.queries=30",
    "evaluate.targets=2", "evaluate.eps=[0.02,0.1]",
    "evaluate.attacks=[fgsm,pgd,apgd-ce,apgd-t,square]",
)  # fmt: skip


def load(out, folder, *settings):
    return load_trained(folder, [Leaf("out", str(out), "test"), *leaves_of_arguments(settings)])


@pytest.fixture(scope="module")
def finished(trained):
    """(result with one worker, printed lines, the run, its folder)."""
    out, folder, _ = trained
    said = []
    run = load(out, folder, *SMALL)
    found = attacked.evaluate(run, Options(echo=said.append, workers=1))
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


def torn_after(whole, share):
    """The header of a table and a share of its rows."""
    start = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    return whole[: start + int(share * (len(whole) - start))]


@pytest.mark.cluster
def test_two_workers_and_a_torn_table_end_with_the_same_bytes(finished, tmp_path):
    found, _, run, _ = finished
    whole = found.files["rows"].read_bytes()
    other = replace(run, folder=tmp_path / run.folder.name, uid=None)
    again = attacked.evaluate(other, Options(echo=lambda _: None, workers=2))
    assert again.files["rows"].read_bytes() == whole
    for share in (0.4, 0.9):
        again.files["rows"].write_bytes(torn_after(whole, share))
        said = []
        attacked.evaluate(other, Options(echo=said.append, workers=2))
        assert again.files["rows"].read_bytes() == whole
        assert any("resuming" in line for line in said)
    said = []
    attacked.evaluate(other, Options(echo=said.append))
    assert "4 of 4 shards are done" in said[-1]


@pytest.mark.cluster
def test_another_protocol_needs_no_resume(finished, tmp_path):
    _, _, run, _ = finished
    other = replace(run, folder=tmp_path / "run", uid=None)
    attacked.evaluate(other, Options(echo=print))
    section = replace(other.config.evaluate, seed=1)
    changed = replace(other, config=replace(other.config, evaluate=section))
    with pytest.raises(RequestError, match=r"seed: 0 -> 1.*--no-resume"):
        attacked.evaluate(changed, Options(echo=print))
    attacked.evaluate(changed, Options(echo=print, resume=False))
    assert len(list((other.folder / "attacked").glob("*.tsv"))) == 2


@pytest.mark.cluster
def test_without_attacks_it_is_clean_accuracy(finished):
    found, _, run, _ = finished
    section = replace(run.config.evaluate, attacks=())
    clean = attacked.evaluate(
        replace(run, config=replace(run.config, evaluate=section)), Options(echo=print)
    )
    assert clean.text().startswith("clean accuracy")
    assert clean.metrics["attacked/clean_accuracy"] == pytest.approx(found.details["clean"])
    assert not clean.files


@pytest.fixture(scope="module")
def defended(cluster, new_out):
    """(out, run folder) of a run behind the barycenter."""
    out = new_out("defended")
    settings = [text for text in kit.TINY if not text.startswith("method.")]
    settings += [f"out={out}", "name=behind", "method.name=beckman", "method.base.steps=1"]
    config = compose(leaves_of_arguments(settings), methods.get)
    return out, training.train(config, address=None, resume=True, verbose=False, echo=print)


@pytest.mark.cluster
def test_17_behind_a_front_three_protocols_side_by_side(defended, tmp_path, cli):
    """Reported in text, JSON, headers, MLflow and report; resumes after a kill in the second."""
    out, folder = defended
    run = load(out, folder, *SMALL)
    found = attacked.evaluate(run, Options(echo=lambda _: None, workers=1))
    rows = {"alone": found.files["rows alone"], "oblivious": found.files["rows oblivious"],
            "adaptive": found.files["rows"]}  # fmt: skip
    for view, path in rows.items():
        header = json.loads(path.read_text().splitlines()[0].removeprefix("# "))
        assert header["view"] == view
        assert ("rho=0.5" in header["front"]) is (view != "alone")
        assert f"{view}:" in found.text()
    assert "rho=0.5, mu=0.1, theta=0.1, views=2" in found.text()
    assert "DISTRUST (oblivious)" in found.text()
    plain = json.loads(found.files["summary"].read_text())
    assert plain["protocol"]["view"] == "adaptive"
    assert list(plain["views"]) == ["alone", "oblivious"]
    stored = kit.runs_of(out)[run.folder.name].data.metrics
    for key, part in (("", plain), ("alone/", plain["views"]["alone"]),
                      ("oblivious/", plain["views"]["oblivious"])):  # fmt: skip
        assert stored[f"attacked/{key}clean_accuracy"] == pytest.approx(part["clean"])
        assert stored[f"attacked/{key}robust_accuracy"] == pytest.approx(
            part["points"][1]["robust"]
        )
    assert plain["clean"] == plain["views"]["oblivious"]["clean"]
    result = cli("report", "behind", "--out", out)
    assert result.code == 0, result.err
    for view in rows:
        assert f"| behind | {view}, " in result.out

    other = replace(run, folder=tmp_path / "again", uid=None)
    shutil.copytree(run.folder / "attacked", other.folder / "attacked")
    torn = other.folder / "attacked" / rows["oblivious"].name
    whole = torn.read_bytes()
    torn.write_bytes(torn_after(whole, 0.5))
    (other.folder / "attacked" / rows["adaptive"].name).unlink()
    said = []
    again = attacked.evaluate(other, Options(echo=said.append, workers=2))
    assert sum("resuming" in line for line in said) == 2
    for name in ("rows", "rows alone", "rows oblivious"):
        assert again.files[name].read_bytes() == found.files[name].read_bytes()

    section = replace(run.config.evaluate, attacks=())
    clean = attacked.evaluate(
        replace(run, config=replace(run.config, evaluate=section)), Options(echo=print)
    )
    assert clean.metrics["attacked/alone/clean_accuracy"] == pytest.approx(
        plain["views"]["alone"]["clean"]
    )
    assert "without its front: clean accuracy" in clean.text()


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_that_are_killed_resume_to_the_same_table(finished, tmp_path):
    """Kills a separate driver and all its processes once some shards are done."""
    found, _, run, out = finished
    whole = found.files["rows"].read_bytes()
    script = textwrap.dedent(
        f"""
        import os, sys
        from dataclasses import replace
        from pathlib import Path
        from raybust import methods
        from raybust.trained import load_trained
        from raybust.stages import attacked
        from raybust.stages.measurement import Options
        from raybust.config import Leaf, leaves_of_arguments
        leaves = [Leaf("out", {str(out)!r}, "t"), *leaves_of_arguments({SMALL!r})]
        run = load_trained(Path({str(run.folder)!r}), leaves)
        run = replace(run, folder=Path({str(tmp_path / "run")!r}), uid=None)
        def echo(text):
            print(text, flush=True)
        attacked.evaluate(run, Options(echo=echo, workers=2))
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
    attacked.evaluate(other, Options(echo=said.append, workers=2))
    assert any("resuming" in line for line in said)
    assert path.read_bytes() == whole
