"""`raybust export --verifier`: ONNX for one image, VNN-LIB files of what the bounds leave open."""

import json
import re
import shutil

import pytest
import torch
from small_run import small_run

import raybust
from raybust.numerics.relaxation import certified_margin, trace

EPS = 0.15


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified") / "runs" / "mine"
    return small_run(
        folder, method__name="ibp", method__eps=0.1, method__sigma=None, train__epochs=10,
        train__optimizer="adamw", train__lr=0.01, data__augment="none",
    ).parent  # fmt: skip


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs")
    return tmp_path


def parsed(text):
    """Box (pixels, 2), and the pairs (j, y) of an alternative f_j >= f_y, by a strict grammar."""
    number = r"(\d+\.\d+)"
    lines = [line for line in text.splitlines() if not line.startswith(";")]
    inputs = [line for line in lines if re.fullmatch(r"\(declare-const X_\d+ Real\)", line)]
    outputs = [line for line in lines if re.fullmatch(r"\(declare-const Y_\d+ Real\)", line)]
    box = [[None, None] for _ in inputs]
    for line in lines:
        if found := re.fullmatch(rf"\(assert \(([<>])= X_(\d+) {number}\)\)", line):
            box[int(found[2])][found[1] == "<"] = float(found[3])
    body = lines[len(inputs) + len(outputs) + 2 * len(box) :]
    assert (body[0], body[-1]) == ("(assert (or", "))")
    found = [re.fullmatch(r"    \(and \(>= Y_(\d+) Y_(\d+)\)\)", line) for line in body[1:-1]]
    return torch.tensor(box, dtype=torch.float64), [(int(one[1]), int(one[2])) for one in found]


def test_open_images_by_parsing_and_evaluating(place, cli):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    done = cli("export", "mine", "--verifier", "--to", "there", f"certify.radius={EPS}",
               "certify.examples=40", "--json")  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["difference"] <= 1e-5
    own = raybust.load("mine")
    images, labels = own.dataset.test.fetch(range(40))
    right = own.network(images).argmax(1) == labels
    proven = certified_margin(trace(own.network), own.network, images, labels, eps=EPS,
                              bound="best") > 0  # fmt: skip
    left = {int(own.dataset.test.indices[at]): at for at in (right & ~proven).nonzero().flatten()}
    assert 0 < len(left) < int(right.sum()), "a test of both"
    assert f"{int(proven.sum())} are proven and {len(left)} open" in found["notes"][0]
    rows = [line.split(",") for line in (place / "there/instances.csv").read_text().splitlines()]
    assert {(model, seconds) for model, _, seconds in rows} == {("model.onnx", "300")}
    files = {path.name for path in (place / "there/vnnlib").iterdir()}
    assert files == {name.removeprefix("vnnlib/") for _, name, _ in rows}
    assert files == {f"test_{idx}_{EPS}.vnnlib" for idx in left}
    session = ReferenceEvaluator(onnx.load(place / "there/model.onnx"))
    for idx, at in left.items():
        text = (place / f"there/vnnlib/test_{idx}_{EPS}.vnnlib").read_text()
        box, pairs = parsed(text)
        image, label = images[at].double().flatten(), int(labels[at])
        torch.testing.assert_close(box[:, 0], (image - EPS).clamp(0, 1), rtol=0, atol=1e-15)
        torch.testing.assert_close(box[:, 1], (image + EPS).clamp(0, 1), rtol=0, atol=1e-15)
        assert pairs == [(j, label) for j in range(10) if j != label]
        (logits,) = session.run(None, {"images": images[at : at + 1].numpy()})
        assert logits.shape == (1, 10)
        assert not any(logits[0, j] >= logits[0, y] for j, y in pairs), "the image itself is right"


def test_another_radius_replaces_the_files_and_reuses_the_certificates(place, cli):
    pytest.importorskip("onnxscript")
    words = ("export", "mine", "--verifier", "--to", "there", "certify.examples=20")
    assert cli(*words, "certify.radius=0.1", "certify.bound=ibp").code == 0
    before = set((place / "there/vnnlib").iterdir())
    done = cli(*words, "certify.intent=radii", "certify.radii=[0.05,0.06]", "certify.bound=ibp")
    assert done.code == 0, done.err
    after = set((place / "there/vnnlib").iterdir())
    assert before
    assert not before & after
    assert len(after) == len((place / "there/instances.csv").read_text().splitlines())
    assert len(list((place / "runs/mine/certified").glob("*.tsv"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "certify.radius: got none, but --verifier needs the radius of the ball"),
        (("certify.radius=0",), "certify.radius: got 0"),
        (("certify.radius=0.1", "--format", "torch"), "--format torch: verifiers read ONNX"),
        (("certify.radius=0.1", "certify.bound=ibp", "certify.n=5"), "certify.n: got 5"),
    ],
)
def test_wrong_input_in_one_line(place, cli, words, message):
    done = cli("export", "mine", "--verifier", *words)
    assert done.code == 2
    assert message in done.err
    assert not (place / "export").exists()
