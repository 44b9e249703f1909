"""`raybust predict`: files, folders and arrays; classes with certified radii in every form."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_run import small_run

from raybust import data, methods
from raybust.certification import CertificateLog, Protocol
from raybust.certification.live import Ask, Live
from raybust.certification.prediction import Prediction, audit_of
from raybust.config import compose
from raybust.data.given import images_of
from raybust.errors import WorkError
from raybust.serve.requests import BadRequestError, Limits, question_of
from raybust.stages import serving
from raybust.stages.replayed import check_answers
from raybust.trained import load_trained

FAST = ("certify.n=200",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder `runs` with a trained run."""
    root = tmp_path_factory.mktemp("predicted") / "runs"
    small_run(root / "mine")
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The run and images of digits in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs")
    images, labels = digits()
    for number, image in enumerate(images):
        folder = tmp_path / "pictures" / f"of {int(labels[number])}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image[0] * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    np.savez("arrays.npz", images=images.numpy())
    return tmp_path


def digits(count=8):
    return data.load(compose([], methods.get).data).test.fetch(range(count))


def answers(done):
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_a_folder_a_file_and_an_array_give_the_same_answers(place, cli):
    ask = ("certify.seed=0", *FAST, "--format", "jsonl")
    folder = answers(cli("predict", "mine", "pictures", *ask))
    names = sorted(str(path.relative_to(place)) for path in place.rglob("pictures/*/*.png"))
    assert [one["image"] for one in folder] == names
    files = answers(cli("predict", "mine", *names, *ask))
    assert files == folder
    arrays = answers(cli("predict", "mine", "arrays.npz", *ask))
    order = [int(name.rpartition("/")[2].removesuffix(".png")) for name in names]
    tops = [one["number"] for one in arrays]
    assert sum(tops[at] == one["number"] for at, one in zip(order, folder, strict=True)) >= 6
    for one in folder:
        assert one["draws"] == 200
        assert one["abstain"] == (one["number"] == -1) == (one["label"] == "")
        assert (one["radius"] > 0) == (not one["abstain"])


def test_forms_of_output(place, cli):
    table = cli("predict", "mine", "pictures", *FAST)
    assert table.out.splitlines()[0].split() == ["image", "class", "radius", "bound", "draws"]
    assert "wrong with probability at most 0.001" in table.out
    rows = answers(cli("predict", "mine", "pictures", *FAST, "--format", "jsonl"))
    written = cli("predict", "mine", "pictures", *FAST, "--format", "csv").out
    read = list(csv.DictReader(written.splitlines()))
    assert [(one["image"], float(one["radius"])) for one in read] == [
        (one["image"], one["radius"]) for one in rows
    ]
    asked = answers(
        cli("predict", "mine", "pictures", *FAST, "--radius", "0.1", "--format", "jsonl")
    )
    assert [one["safe"] for one in asked] == [one["radius"] >= 0.1 for one in asked]
    assert sum(one["draws"] for one in asked) < 200 * len(asked), "an answer ends once decided"
    plain = answers(cli("predict", "mine", "pictures", "--plain", "--format", "jsonl"))
    assert {(one["draws"], one["radius"]) for one in plain} == {(0, 0.0)}


def test_full_radii_whatever_the_certificates_of_the_run_were_for(place, cli):
    """A run that was trained with `certify.intent=radii` predicts full radii, too."""
    ask = ("predict", "mine", "pictures", *FAST, "certify.seed=1", "--format", "jsonl")
    full = answers(cli(*ask))
    identity = place / "runs" / "mine" / "run.json"
    for path in (identity, *place.glob("runs/mine/epoch-*/manifest.json")):
        plain = json.loads(path.read_text())
        plain["config"]["certify"] |= {"intent": "radii", "radii": [0.05]}
        path.write_text(json.dumps(plain))
    assert answers(cli(*ask)) == full
    early = cli(
        "predict", "mine", "pictures", *FAST, "certify.intent=radii", "certify.radii=[0.05]"
    )
    assert "only until 0.05 is decided" in early.out


def test_the_same_command_resumes_with_its_own_secret_seed(place, cli):
    first = cli("predict", "mine", "pictures", *FAST, "--format", "jsonl")
    (path,) = place.glob("runs/mine/predicted/*.tsv")
    seed = json.loads(path.read_text().split("\n", 1)[0].removeprefix("# "))["seed"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:9])
    again = cli("predict", "mine", "pictures", *FAST, "--format", "jsonl")
    assert "3 of 8 rows are done" in again.err
    assert again.out == first.out
    fresh = cli("predict", "mine", "pictures", *FAST, "--format", "jsonl", "--no-resume")
    assert fresh.out != first.out
    header = json.loads(path.read_text().split("\n", 1)[0].removeprefix("# "))
    assert header["seed"] != seed > 1000, "nobody can guess it"
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in header.items()}
    assert len(CertificateLog(path, Protocol(**fields)).rows) == 8
    assert "mine" in cli("certify", "mine", "certify.examples=3", *FAST).out
    assert "predicted" not in cli("report", "mine").out, "images without labels have no accuracy"


def test_images_are_resized_and_converted(place, cli):
    image = Image.open(next(place.rglob("0.png")))
    image.resize((64, 48), Image.Resampling.NEAREST).convert("RGBA").save("large.png")
    (found,) = answers(cli("predict", "mine", "large.png", *FAST, "--format", "jsonl"))
    assert found["image"] == "large.png"


def test_what_was_left_out_is_said(place, cli):
    assert "left out: 1 files .txt" in cli("predict", "mine", "pictures", *FAST).err


def test_a_run_without_its_data_predicts(place, cli, tmp_path):
    """The images of the training are not needed: only what the checkpoint has."""
    code = "import sys; from raybust.cli import main; main(sys.argv[1:])"
    words = ["predict", "mine", "arrays.npz", *FAST, "--plain"]
    blocked = f"import raybust.data.arrays as a\na.digits = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", blocked, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine"], "IMAGES"),
        (["mine", "certify.n=100"], "expected images"),
        (["mine", "none.png"], "none.png: there is no such file or folder"),
        (["mine", "runs/mine/run.json"], "cannot be read as an image"),
        (["mine", "wide.npz", "none.png"], "got an npz beside 1 other paths, expected it alone"),
        (["mine", "empty"], "empty: no images there"),
        (["mine", "torn.npz"], "torn.npz: is not an npz file"),
        (["mine", "two.npz"], "has the arrays a, b; name the one of the images"),
        (["mine", "wide.npz"], "got (C, H, W) = (1, 9, 8), expected (1, 8, 8)"),
        (["mine", "dark.npz"], "expected uint8 or floats in [0, 1]"),
        (["mine", "pictures", "--plain", "--radius", "1"], "leave out --plain"),
        (["mine", "pictures", "--radius", "-1"], "certify.radius"),
        (["mien", "pictures"], "Did you mean 'mine'"),
        (["mine", "pictures", "train.epochs=3"], "fixed by the training"),
        (["mine", "pictures", "--format", "xml"], "'xml'"),
        (["models:/mine@best", "pictures"], "there is no MLflow store"),
        (["mine/best", "pictures"], "mine"),
    ],
)
def test_mistakes(place, cli, words, said):
    (place / "empty").mkdir()
    (place / "torn.npz").write_bytes(b"PK\x03\x04")
    np.savez("two.npz", a=np.zeros((1, 8, 8)), b=np.zeros((1, 8, 8)))
    np.savez("wide.npz", x=np.zeros((1, 9, 8)))
    np.savez("dark.npz", x=np.zeros((1, 8, 8), dtype=np.int64))
    found = cli("predict", *words)
    assert (found.code, found.out) == (2, "")
    assert said in found.err.splitlines()[-1]
    assert "Traceback" not in found.err
    assert not list(place.glob("runs/mine/predicted/*"))


def test_files_are_decoded_as_those_of_the_training(tmp_path, cli, monkeypatch):
    """A transparent background is white for this network: gray ones are of the other class."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 6)):
        for name, gray, alpha in (("paper", 255, 0), ("slate", 128, 255)):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((12, 12, 4), gray, np.uint8)
                pixels[..., 3] = alpha
                left, top = draw.integers(0, 8, 2)
                pixels[top : top + 4, left : left + 4] = (0, 0, 0, 255)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    small_run(
        tmp_path / "runs" / "bg", data__name="image_folder", data__path=str(tmp_path / "data"),
        data__image_size=12, data__background=[1.0], data__augment="none", train__epochs=8,
        train__batch_size=8, data__loader_workers=0,
    )  # fmt: skip
    found = answers(cli("predict", "bg", "data/val", *FAST, "--format", "jsonl"))
    assert len(found) == 12
    right = [one["label"] in one["image"] for one in found if not one["abstain"]]
    assert sum(right) >= 10, found


def test_an_empty_log_gets_a_secret_seed_too(place, cli):
    log = place / "runs" / "mine" / "predicted" / "zz.tsv"
    log.parent.mkdir()
    log.write_text("")
    assert cli("predict", "mine", "pictures", *FAST, "--name", "zz").code == 0
    assert json.loads(log.read_text().split("\n", 1)[0].removeprefix("# "))["seed"] > 1000
    done = cli("report", log)
    assert (done.code, "images without labels" in done.err) == (2, True)


@pytest.mark.parametrize("plain", [(), ("--plain",)])
def test_arrays_that_are_nearly_black_are_told(place, cli, plain):
    images, _ = digits()
    for scale, said in ((16, True), (255, False)):
        np.savez("scaled.npz", images=(images * scale).round().byte().numpy())
        done = cli("predict", "mine", "scaled.npz", *FAST, *plain)
        assert done.code == 0, done.err
        assert ("the largest value is 16 of 255, nearly black" in done.err) == said


def served(trained, images, **asked):
    """A response of `raybust serve` with audits, without its HTTP."""
    network, protocol = trained.network, serving.protocol_of(trained, "cpu")
    live = Live(network, protocol, 10)
    try:
        found = [one.result() for one in live.submit(images, Ask(n=1000, **asked))]
    finally:
        live.close()
    predictions = []
    for number, one in enumerate(found):
        answer = Prediction.certified(str(number), one.row, trained.classes, one.protocol.norm)
        audit = audit_of(one.row, one.protocol, trained.classes)
        predictions.append({**answer.fields(asked.get("radius")), "audit": audit})
    about = {key: getattr(protocol, key) for key in ("noise", "norm", "sigma", "weights")}
    return json.loads(json.dumps({"predictions": predictions, "alpha": 0.001, **about}))


@pytest.mark.parametrize("asked", [{}, {"radius": 0.05}])
def test_every_part_of_a_replayed_answer_is_recomputed(trained, tmp_path, asked):
    network = load_trained(trained / "mine", [])
    images = digits(2)[0]
    part = images_of(images.numpy(), (1, 8, 8))
    file, response = tmp_path / "answer.json", served(network, images, **asked)
    file.write_text(json.dumps(response))
    assert check_answers(network, part, file).count("reproduced") == 2
    (first, _), edits = response["predictions"], []
    assert ("safe" in first) == bool(asked)
    for where in (first, first["audit"], response):
        for key, value in where.items():
            if key not in ("image", "audit", "protocol", "predictions", "key"):
                edits.append((where, key, value, _edited(value)))
    edits.append((first, "safe", first.get("safe"), not first.get("safe")))
    edits.append((first, "more", None, 1))
    for where, key, value, other in edits:
        where[key] = other
        file.write_text(json.dumps(response))
        with pytest.raises(WorkError, match="was not reproduced"):
            check_answers(network, part, file)
        where[key] = value
        if value is None:
            del where[key]
    file.write_text(json.dumps(response))
    assert check_answers(network, part, file).count("reproduced") == 2


def _edited(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "another": 1}
    return f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("n", [100.5, "100.5", True, 0])
def test_a_server_takes_whole_numbers_of_draws_alone(n):
    limits, image = Limits((1, 8, 8), 1000, 0.001, 4, 10**6), np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(BadRequestError, match="n: got"):
        question_of(image, ("0",), {"n": n}, limits)
    for whole in (100, 100.0, "100"):
        assert question_of(image, ("0",), {"n": whole}, limits).ask["n"] == 100
