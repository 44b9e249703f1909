"""Evaluation under corruption over Ray: counts that do not depend on workers or kills, MLflow, and
the transfer matrix of runs."""

import json
from dataclasses import replace

import kit
import pytest

from raybust.config import Leaf, leaves_of_arguments
from raybust.corruptions import CountsLog, evaluate_corruptions, merge
from raybust.errors import RequestError
from raybust.stages import corrupted
from raybust.stages.measurement import Options
from raybust.stages.transfer import trainings_of
from raybust.trained import load_trained

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

ASKED = ("corruptions.sets=[C1,iCE]", "corruptions.rows=[[0,0.2]]", "corruptions.examples=100")


def timeless(content):
    """The sorted lines of a file of counts, without their seconds."""
    lines = [json.loads(line) for line in content.splitlines()]
    return sorted(json.dumps({**line, "seconds": 0}) for line in lines)


@pytest.fixture(scope="module")
def measured(trained):
    """(result, the run, its store)."""
    out, folder, _ = trained
    leaves = [Leaf("out", str(out), "test"), *leaves_of_arguments(ASKED)]
    run = load_trained(folder, leaves)
    return corrupted.evaluate(run, Options(echo=print, workers=2)), run, out


def test_two_workers_find_what_one_call_finds(measured):
    import torch

    found, run, _ = measured
    whole = evaluate_corruptions(
        run.network, run.dataset.test, run.config.corruptions, torch.device("cpu")
    )
    log = CountsLog(found.files["counts"], corrupted.protocol_of(run, "cpu"), whole.sets)
    together = merge([log.shares[share].found for share in sorted(log.shares)])
    assert [(c.name, c.level, c.correct, c.examples) for c in together.cells] == [
        (c.name, c.level, c.correct, c.examples) for c in whole.cells
    ]
    assert found.metrics == pytest.approx(whole.metrics(), abs=1e-6)
    assert found.metrics["error/p_0"] > found.metrics["error/clean"]


def test_results_are_in_files_and_in_mlflow(measured):
    found, run, out = measured
    stored = kit.runs_of(out)[run.folder.name]
    for key in ("mCE_Lp", "iCE", "error/p_0", "error/p_inf", "calibration/clean"):
        assert stored.data.metrics[key] == pytest.approx(found.metrics[key])
    names = {path.rpartition("/")[2] for path in kit.artifacts_of(out, stored, "corrupted")}
    assert names == {path.name for path in found.files.values()}
    plain = json.loads(found.files["metrics"].read_text())
    assert plain["metrics"] == found.metrics
    assert plain["protocol"] == json.loads(found.files["counts"].read_text().splitlines()[0])
    assert found.files["table"].read_text().startswith("| corruption |")
    assert "mCE_Lp" in found.text()


def test_what_is_done_is_not_done_again_and_a_torn_line_is(measured, tmp_path):
    found, run, _ = measured
    other = replace(run, folder=tmp_path / "run", uid=None)
    path = tmp_path / "run" / "corrupted" / found.files["counts"].name
    path.parent.mkdir(parents=True)
    whole = found.files["counts"].read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:50])
    said = []
    again = corrupted.evaluate(other, Options(echo=said.append))
    assert any("8 of 16 shares are done" in line for line in said)
    assert again.metrics == found.metrics
    assert timeless(path.read_bytes()) == timeless(whole)
    path.write_text('{"version": 0}\n')
    with pytest.raises(RequestError, match=r"another protocol \(version: 0 -> 2.*unproven origin"):
        corrupted.evaluate(other, Options(echo=print))
    path.write_text("counts of somebody's\n")
    with pytest.raises(RequestError, match="is not a file of counts by raybust"):
        corrupted.evaluate(other, Options(echo=print))


def test_transfer_of_runs(measured, cli):
    _, run, out = measured
    result = cli("report", run.folder, "--out", out, "--name", "norms")
    assert result.code == 0, result.err
    assert "p=inf" in result.out
    assert (out / "norms" / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_were_measured_by_other_protocols_are_not_compared(measured, tmp_path):
    _, run, _ = measured
    other = tmp_path / "other"
    kit.move_copy(run.folder, other)
    both = [*run.folder.glob("corrupted/*.json"), *other.glob("corrupted/*.json")]
    assert len(trainings_of(both)[0]) == 2
    for path in (other / "corrupted").glob("*.json"):
        whole = json.loads(path.read_text())
        whole["protocol"]["seed"] = 7
        path.write_text(json.dumps(whole))
    with pytest.raises(RequestError, match="were measured under different protocols"):
        trainings_of(both)
