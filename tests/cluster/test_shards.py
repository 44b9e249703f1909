"""Certification on Ray: the same file for any number of tasks, interruptions and crashes."""

import re
import shutil
import subprocess
import sys

import kit
import pytest
import torch
from waiting import wait

from raybust import config as configuration
from raybust.certification import CertificateLog, certify_examples
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError, WorkError
from raybust.stages import certified, place
from raybust.stages.measurement import Options
from raybust.trained import load_trained

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

EXAMPLES = 40


def silent(text):
    """Prints nothing."""


def load(folder, *settings):
    leaves = configuration.leaves_of_arguments([f"certify.examples={EXAMPLES}", *settings])
    return load_trained(folder, [*leaves, configuration.Leaf("out", str(folder.parent), "test")])


def certify(trained, **options):
    return certified.certify(trained, Options(**({"echo": silent} | options)))


def timeless(path):
    """The bytes of a log without its column `time`."""
    lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines[2:]]
    return lines[:2], [row[:5] + row[6:] for row in rows]


@pytest.mark.parametrize(("count", "room"), [(1, 4), (64, 1), (64, 2), (10_000, 8)])
def test_shards_hold_every_position_once_and_shrink_towards_the_end(count, room):
    found = list(certified.in_shards(list(range(count)), room))
    assert [at for shard in found for at in shard] == list(range(count))
    sizes = [len(shard) for shard in found]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= 64
    assert sizes[0] <= max(2, count / (8 * room))
    assert all(size <= 2 for size in sizes[-room:])


@pytest.fixture
def run(trained, out):
    """A copy of the trained run with its own store."""
    kit.move_copy(trained[1], out / "one")
    return out / "one"


@pytest.fixture(scope="module")
def reference(trained, new_out):
    """The log of one task at a time, with the same rows as the engine alone."""
    out = new_out("reference")
    kit.move_copy(trained[1], out / "one")
    return certify(load(out / "one"), workers=1)


def test_one_task_gives_the_rows_of_the_engine_alone(trained, reference):
    held = load(trained[1])
    protocol = certified.protocol_of(held, "cpu")
    split = held.dataset.test
    chosen = protocol.select(len(split))
    assert len(chosen) == EXAMPLES
    images, labels = split.fetch(chosen)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    indices = split.indices[chosen].tolist()
    rows = list(certify_examples(held.network, images, labels, indices, protocol))
    torch.set_num_threads(threads)
    stored = CertificateLog(reference.log, protocol).rows
    assert len(stored) == EXAMPLES
    for row, found in zip(sorted(rows, key=lambda row: row.idx), stored, strict=True):
        assert row.same(found)


@pytest.mark.parametrize("workers", [2, 3, None])
def test_the_file_does_not_depend_on_the_number_of_tasks(run, reference, workers):
    found = certify(load(run, f"cluster.cpus_per_worker={2 / (workers or 2):.3g}"), workers=workers)
    assert timeless(found.log) == timeless(reference.log)
    assert found.log.name == reference.log.name
    assert found.metrics == {**reference.metrics, **{
        key: value for key, value in found.metrics.items() if "seconds" in key or "time" in key
    }}  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_this_process_gives_the_file_that_ray_gives(run, reference, monkeypatch, workers):
    """With and without a helper beside it."""
    monkeypatch.setattr(place, "suffices", lambda *_: True)
    found = certify(load(run), workers=workers)
    assert timeless(found.log) == timeless(reference.log)
    (child,) = kit.runs_of(run.parent).values()
    assert child.data.metrics["certified/acr"] == reference.metrics["certified/acr"]


def test_an_mlflow_server_that_is_away_is_only_a_warning(run, reference):
    said = []
    found = certify(load(run, "track.uri=http://127.0.0.1:9"), echo=said.append)
    assert sum("MLflow at http://127.0.0.1:9 cannot be used now" in line for line in said) == 1
    assert timeless(found.log) == timeless(reference.log)
    journal = found.log.with_suffix(".journal.jsonl")
    assert "certified/acr" in journal.read_text()


def test_results_are_published(trained, run, reference):
    found = certify(load(run))
    assert found.files["curve"].read_bytes().startswith(b"\x89PNG")
    text = found.log.with_suffix(".md").read_text()
    assert "n = 200, alpha = 0.001; 40 examples" in text
    assert found.text().startswith(found.table)
    assert found.plain()["metrics"] == found.metrics
    (child,) = kit.runs_of(run.parent).values()
    assert child.data.tags["raybust.run_key"] == runs.read_identity(run).uid
    assert child.data.metrics["certified/acr"] == found.metrics["certified/acr"]
    files = kit.artifacts_of(run.parent, child, "certified")
    assert files == {f"certified/{found.log.with_suffix(s).name}" for s in (".tsv", ".png", ".md")}


def test_an_interrupted_run_resumes_to_the_same_file(run, reference, monkeypatch):
    append, count = CertificateLog.append, 0

    def interrupted(self, rows):
        nonlocal count
        if count >= 17:
            raise KeyboardInterrupt
        count += len(rows)
        append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(CertificateLog, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            certify(load(run))
    (path,) = (run / "certified").glob("*.tsv")
    assert len(path.read_text().splitlines()) == 2 + count
    with path.open("a") as file:
        file.write("12\t3\t")  # a row truncated by a kill
    done, said = [], []
    with monkeypatch.context() as patch:
        patch.setattr(
            CertificateLog, "append", lambda self, rows: (done.extend(rows), append(self, rows))
        )
        found = certify(load(run), echo=said.append)
    assert len(done) == EXAMPLES - count
    assert any(f"{count} of {EXAMPLES} rows are done" in line for line in said)
    assert timeless(found.log) == timeless(reference.log)


@pytest.mark.slow
def test_a_driver_that_is_killed_twice_ends_with_the_same_file(trained, run, tmp_path):
    """Kills `raybust certify`, in its own process, as soon as it has written new rows."""
    settings = ("certify.examples=120", "certify.n=3000")
    shutil.copytree(trained[1], tmp_path / "one")
    whole = certify(load(tmp_path / "one", *settings))
    path = run / "certified" / whole.log.name
    command = [sys.executable, "-m", "raybust", "certify", str(run), *settings]
    command += [f"out={run.parent}"]

    def killed(seen):
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait(lambda: path.exists() and len(path.read_text().splitlines()) > seen, 90, "rows")
        driver.kill()
        driver.communicate()
        return len(path.read_text().splitlines())

    seen = killed(killed(2))
    assert seen < 2 + 120, "it was finished before it was killed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f"{seen - 2} of 120 rows are done" in done.stderr + done.stdout
    assert timeless(path) == timeless(whole.log)


def test_a_finished_log_is_not_computed_again(run, reference, monkeypatch):
    first = certify(load(run))
    before = first.log.read_bytes()
    monkeypatch.setattr(CertificateLog, "append", lambda self, rows: pytest.fail("computed again"))
    assert certify(load(run)).metrics == first.metrics
    assert first.log.read_bytes() == before


def test_no_resume_moves_the_log_aside_and_mlflow_shows_the_new_one(run):
    found = [certify(load(run, f"certify.examples={n}"), resume=False) for n in (4, 6)]
    assert len(list(found[0].log.parent.glob("*.tsv"))) == 2
    (stored,) = kit.runs_of(run.parent).values()
    assert found[0].metrics["certified/acr"] != found[1].metrics["certified/acr"]
    assert stored.data.metrics["certified/acr"] == found[1].metrics["certified/acr"]


def test_a_task_that_is_killed_is_run_again(run, reference, monkeypatch):
    append, killed = CertificateLog.append, []

    def deadly(self, row):
        append(self, row)
        for process in kit.descendants("ray::_shard"):
            if not killed:
                process.kill()
                killed.append(process.pid)

    monkeypatch.setattr(CertificateLog, "append", deadly)
    found = certify(load(run))
    assert killed
    assert timeless(found.log) == timeless(reference.log)


def test_a_row_is_reproduced(run):
    held = load(run)
    found = certify(held)
    idx = CertificateLog(found.log, certified.protocol_of(held, "cpu")).rows[5].idx
    assert f"row {idx} of" in certified.recompute(held, idx)
    assert "was reproduced" in certified.recompute(held, idx)
    before = found.log.read_bytes()
    with pytest.raises(RequestError, match=r"example 987654 is not in"):
        certified.recompute(held, 987654)
    text = found.log.read_text().splitlines()
    cells = text[7].split("\t")
    cells[7] = str(int(cells[7]) - 1)  # votes of the pilot, on which nothing else depends
    text[7] = "\t".join(cells)
    found.log.write_text("\n".join(text) + "\n")
    with pytest.raises(WorkError, match="was not reproduced"):
        certified.recompute(held, int(cells[0]))
    assert before != found.log.read_bytes()


def test_a_row_of_a_log_that_is_not_there(run):
    with pytest.raises(RequestError, match="no certificates with this protocol yet"):
        certified.recompute(load(run), 0)


def test_a_log_of_other_weights_is_refused_and_kept(run):
    found = certify(load(run, "certify.examples=4"))
    before = found.log.read_bytes()
    held = load(run, "certify.examples=4")
    with torch.no_grad():
        next(held.network.parameters()).add_(1e-3)
    with pytest.raises(RequestError, match=r"another function \(weights"):
        certify(held)
    assert found.log.read_bytes() == before
    assert not list(found.log.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    "settings", [("certify.seed=1",), ("certify.alpha=0.01",), ("certify.n0=50",)]
)
def test_a_log_of_another_protocol_is_refused_and_kept(run, settings):
    found = certify(load(run, "certify.examples=4"))
    before = found.log.read_bytes()
    key = settings[0].partition("=")[0].rpartition(".")[2]
    with pytest.raises(RequestError, match=rf"another protocol \({key}: "):
        certify(load(run, "certify.examples=4", *settings))
    assert found.log.read_bytes() == before


def test_another_sigma_has_a_file_of_its_own_and_a_warning(run):
    certify(load(run, "certify.examples=4"))
    said = []
    found = certify(load(run, "certify.examples=4", "certify.sigma=0.5"), echo=said.append)
    assert len(list(found.log.parent.glob("*.tsv"))) == 2
    assert any(re.search(r"warning: .*sigma", line) for line in said)


def test_a_network_whose_outputs_are_nan_fails_in_one_line(run):
    held = load(run, "certify.examples=4")
    with torch.no_grad():
        list(held.network.parameters())[-1].fill_(float("nan"))
    with pytest.raises((WorkError, RequestError), match=r"NaN|finite") as told:
        certify(held)
    assert "\n" not in str(told.value)


def test_a_checkpoint_and_a_weights_file_are_certified_alike(run, out, reference):
    folder = checkpoint.newest(run)
    found = certify(load(folder))
    assert timeless(found.log) == timeless(reference.log)
    bare = out / "bare.safetensors"
    shutil.copy(folder / checkpoint.WEIGHTS, bare)
    leaves = kit.leaves(out, f"certify.examples={EXAMPLES}", "certify.sigma=0.25")
    alone = certify(load_trained(bare, leaves))
    assert timeless(alone.log) == timeless(reference.log)
