"""`raybust export`: networks that others' code reads compute the same; the card has the figures."""

import json
import shutil

import pytest
import torch
from small_run import small_run

import raybust
from raybust.disk import checkpoint
from raybust.reporting import acr, read_log

CARD = "MODEL_CARD.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("exported") / "runs" / "mine").parent


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs")
    return tmp_path


def read(form, path):
    """The exported network, read by the library that owns its form."""
    if form == "torch":
        return torch.export.load(path / "model.pt2").module()
    if form == "onnx":
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(onnx.load(path / "model.onnx"))
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    return raybust.load(path).network


@pytest.mark.parametrize("form", ["safetensors", "torch", "onnx"])
def test_the_exported_network_computes_the_same_on_any_number_of_images(place, cli, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    done = cli("export", "mine", "--format", form, "--to", "there", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["difference"] <= 1e-4
    own = raybust.load("mine")
    images, _ = own.dataset.test.fetch(range(50, 55))
    network = read(form, place / "there")
    with torch.no_grad():
        for count in (1, 5):
            assert torch.allclose(network(images[:count]), own.network(images[:count]), atol=1e-4)
    assert (place / "there" / CARD).exists()


def test_an_export_is_a_network_wherever_one_is_named(place, cli):
    assert cli("export", "mine", "--to", "there").code == 0
    shutil.rmtree("runs")
    found = cli("certify", "there", "certify.examples=4", "certify.n=200")
    assert found.code == 0, found.err
    names = {path.name for path in (place / "there").iterdir()}
    assert names == {checkpoint.WEIGHTS, checkpoint.MANIFEST, CARD}
    assert (place / "there" / checkpoint.WEIGHTS).stat().st_mode & 0o044, "others may read it"


def test_the_card_has_the_figures_of_the_logs(place, cli):
    cli("export", "mine", "--to", "there")
    assert "Nothing yet: `raybust certify mine`." in (place / "there" / CARD).read_text()
    cli("certify", "mine", "certify.examples=12", "certify.n=200")
    cli("evaluate", "mine", "evaluate.examples=6", "evaluate.eps=[0.1]", "evaluate.attacks=[pgd]")
    assert cli("export", "mine", "--to", "there", "--license", "CC-BY-4.0").code == 0
    card = (place / "there" / CARD).read_text()
    (log,) = place.glob("runs/mine/certified/*.tsv")
    assert str(acr(read_log(log))).partition(" (")[0] in card
    assert "| mine | adaptive, pgd" in card
    for text in ("CC-BY-4.0", "`gaussian`: sigma: 0.25", "3 epochs", "1294 training images"):
        assert text in card
    shutil.rmtree(checkpoint.newest(place / "runs" / "mine"))
    cli("export", "mine", "--to", "there")
    assert "Nothing yet: `raybust certify mine`." in (place / "there" / CARD).read_text(), (
        "certificates of another checkpoint are not this network's"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mien",), "Did you mean 'mine'"),
        (("mine", "--format", "pickle"), "'pickle'"),
        (("mine", "--to", "runs/mine/run.json"), "run.json"),
        (("mine", "--to", "runs/mine/epoch-000003"), "which no export wrote"),
    ],
)
def test_mistakes(place, cli, words, said):
    before = sorted(place.rglob("*"))
    done = cli("export", *words)
    assert done.code in (1, 2)
    assert sorted(place.rglob("*")) == before
    assert said in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_network_that_cannot_be_traced_is_one_line(place, cli, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    (place / "branching.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(64, 10)\n\n"
        "    def forward(self, images):\n"
        "        if float(images.sum()) > 1e9:\n            images = images * 2\n"
        "        return self.layer(images.flatten(1))\n"
    )
    torch.save(torch.nn.Linear(64, 10).state_dict(), "w.pth")
    state = {f"layer.{key}": value for key, value in torch.load("w.pth").items()}
    torch.save(state, "w.pth")
    words = ("export", "w.pth", "model.name=branching:Net", "--to", "there")
    assert cli(*words).code == 0
    done = cli(*words, "--format", "torch")
    assert done.code == 2
    assert "cannot be traced" in done.err.splitlines()[-1]


def test_a_card_never_has_figures_or_files_of_other_weights(place, cli):
    """Weights files and folders keep their names when their content changes."""
    state = raybust.load("mine").network.state_dict()
    torch.save(state, "w.pth")
    ask = ("w.pth", "model.width=8", "certify.sigma=0.25")
    assert cli("certify", *ask, "certify.examples=8", "certify.n=200").code == 0
    assert cli("export", *ask, "--to", "there", "--format", "torch").code == 0
    card = (place / "there" / CARD).read_text()
    assert "| abstain |" in card
    assert "method and settings are not known" in card
    first = (place / "there" / "model.pt2").read_bytes()
    torch.save({key: value * 0.5 for key, value in state.items()}, "w.pth")
    assert cli("export", *ask, "--to", "there").code == 0
    card = (place / "there" / CARD).read_text()
    assert "Nothing yet" in card
    assert "| abstain |" not in card
    assert not (place / "there" / "model.pt2").exists(), first[:0]


def test_a_file_of_another_function_with_the_same_weights_is_removed(place, cli, monkeypatch):
    """Another normalization: the weights and their digest stay."""
    state = raybust.load("mine").network.state_dict()
    bare = {key: value for key, value in state.items() if not key.endswith(("mean", "std"))}
    torch.save(bare, "w.pth")
    ask = ("export", "w.pth", "model.width=8", "--to", "there")
    assert cli(*ask, "--format", "torch").code == 0
    assert cli(*ask).code == 0
    assert (place / "there" / "model.pt2").exists(), "the same network in another form"
    assert cli(*ask, "model.mean=[0.1]", "model.std=[0.9]").code == 0
    assert not (place / "there" / "model.pt2").exists()


def test_the_card_of_foreign_weights_states_their_normalization_and_no_training(place, cli):
    inner = raybust.load("runs/mine").network.network.state_dict()
    whole = {"state_dict": inner, "mean": torch.tensor([0.7]), "std": torch.tensor([0.5])}
    torch.save(whole, "theirs.pth")
    settings = ("model.name=small_cnn", "model.width=8", "data.name=digits")
    assert cli("export", "theirs.pth", *settings, "--to", "there").code == 0
    card = (place / "there" / CARD).read_text()
    assert "Normalization: mean 0.7, std 0.5." in card
    assert "0.305" not in card
    training = card.partition("## Training")[2].partition("##")[0]
    assert "- trained elsewhere: data, method and settings are not known" in training
    assert "- measured here on: digits; 1294 training images" in training


def test_the_card_has_a_table_for_each_norm(place, cli):
    for more in ((), ("certify.noise=uniform",), ("certify.norm=linf",)):
        done = cli("certify", "mine", "certify.examples=5", "certify.n=100", *more)
        assert done.code == 0, done.err
    cli("export", "mine", "--to", "there")
    card = (place / "there" / CARD).read_text()
    for norm in ("l1", "l2", "linf"):
        (table,) = [part for part in card.split("###") if part.startswith(f" Radii in {norm}\n")]
        assert sum(line.startswith("| test") for line in table.splitlines()) == 1
