"""The functions of the package: the command line's rows, for any module and any data in memory."""

import copy
import gc
import io
import json
import math
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from small_run import small_run
from torch import nn
from torch.utils.data import TensorDataset

import raybust
from raybust import data
from raybust.certification import CertificateLog, Protocol, Row
from raybust.config import compose
from raybust.errors import RequestError
from raybust.methods import get

FAST = ("certify.n=200", "certify.examples=12")
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, shape=None, num_classes=10):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, its class in a file of the working directory, and its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "api_net.py").write_text(NET)
    sys.modules.pop("api_net", None)
    from api_net import Net

    digits = data.load(compose([], get).data)
    images, labels = digits.train.fetch(range(len(digits.train)))
    torch.manual_seed(0)
    network = Net()
    step = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        noisy = images + 0.25 * torch.randn_like(images)
        loss = nn.functional.cross_entropy(network(noisy), labels)
        step.zero_grad()
        loss.backward()
        step.step()
    torch.save(network.state_dict(), "own.pth")
    return network


def digits_test():
    return data.load(compose([], get).data).test.fetch(range(12))


def log_rows(path):
    header = json.loads(path.read_text().split("\n", 1)[0].removeprefix("# "))
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in header.items()}
    return CertificateLog(path, Protocol(**fields)).rows


def same(ours, theirs):
    return len(ours) == len(theirs) and all(a.same(b) for a, b in zip(ours, theirs, strict=True))


def test_rows_of_a_module_are_those_of_the_command_line(own, cli, tmp_path):
    mine = raybust.certify(own, "digits", *FAST, sigma=0.25, quiet=True)
    words = ("own.pth", "model.name=api_net:Net", "model.mean=[0.0]", "model.std=[1.0]")
    done = cli("certify", *words, *FAST, "certify.sigma=0.25", "--json")
    assert done.code == 0, done.err
    path = json.loads(done.out)["files"]["rows"]
    assert same(mine.rows, log_rows(tmp_path / path))
    assert sum(row.correct for row in mine.rows) >= 8, "the comparison needs certificates"
    assert isinstance(mine.rows[0], Row)


@pytest.mark.parametrize("form", ["tensors", "arrays", "uint8", "dataset", "npz"])
def test_forms_of_data_give_the_rows_of_the_named_data(own, form, tmp_path):
    images, labels = digits_test()
    if form == "tensors":
        given = images, labels
    elif form == "arrays":
        given = images[:, 0].double().numpy(), labels.tolist()
    elif form == "uint8":
        given = (images[:, 0] * 255).round().byte().numpy(), labels.numpy()
    elif form == "dataset":
        given = TensorDataset(images, labels)
    else:
        given = str(tmp_path / "own.npz")
        pixels, truth = images[:, 0].numpy(), labels.numpy()
        np.savez(given, x_train=pixels, y_train=truth, x_test=pixels, y_test=truth)
    settings = ("certify.n=200", *(("data.validation=0.5",) if form == "npz" else ()))
    found = raybust.certify(own, given, *settings, sigma=0.25, quiet=True).rows
    torch.manual_seed(1)
    again = raybust.certify(own, (images, labels), "certify.n=200", sigma=0.25, quiet=True).rows
    if form == "uint8":
        assert [row.top for row in found] == [row.top for row in again]
    else:
        assert same(found, again)
    assert [row.label for row in found] == labels.tolist()
    assert own.training, "the module of the user stays as it is"


def test_attack_and_corrupt(own):
    given = digits_test()
    attacked = raybust.attack(own, given, eps=[0.1, 0.5], norm="l2", quiet=True)
    clean = float((own(given[0]).argmax(1) == given[1]).double().mean())
    weak, strong = (attacked.metrics[f"attacked/l2_{eps}/robust_accuracy"] for eps in (0.1, 0.5))
    assert clean >= weak >= strong
    corrupted = raybust.corrupt(own, given, sets=["C1"], quiet=True)
    (error,) = (v for key, v in corrupted.metrics.items() if key.endswith("error/clean"))
    assert error == pytest.approx(1 - clean)


def test_train_load_certify_predict_report(tmp_path, cli):
    out = tmp_path / "runs"
    tiny = (
        "method.name=gaussian", "method.sigma=0.25", "model.width=4", "train.epochs=2",
        "certified_fast.every=0", "certified_fast.n=100", "certified_fast.examples=2",
    )  # fmt: skip
    first = raybust.train(*tiny, name="mine", out=out, quiet=True)
    assert (first.name, first.sigma, len(first.classes)) == ("mine", 0.25, 10)
    again = raybust.train(*tiny, name="mine", out=out, quiet=True)
    images, _ = first.dataset.test.fetch(range(4))
    assert torch.equal(first.network(images), again.network(images))
    found = raybust.certify("mine", None, *FAST, out=out, quiet=True)
    done = cli("certify", "mine", *FAST, "--out", out, "--json")
    assert (done.code, "resuming" in done.err) == (0, True)
    assert json.loads(done.out)["metrics"] == found.metrics
    loaded = raybust.load("mine", out=out)
    assert same(found.rows, raybust.certify(loaded, None, *FAST, quiet=True).rows)
    answers = raybust.predict("mine", images, "certify.n=200", out=out)
    assert [len(answers), answers[0].draws] == [4, 200]
    assert raybust.predict("mine", images[0], "certify.n=200", out=out)[0].draws == 200
    assert "mine" in raybust.report("mine", out=out).text()
    log = next((out / "mine" / "certified").glob("*.tsv"))
    by_hand = log.parent / "twin.tsv"
    by_hand.write_bytes(log.read_bytes())
    found = raybust.compare(log, [by_hand], out=out, margin=5)
    assert {row.decision.verdict for row in found.rows} <= {"equivalent", "cannot say"}
    stated = cli("compare", log, by_hand, "--out", out, "--margin", 5, "--json")
    assert json.loads(stated.out) == json.loads(json.dumps(found.plain()))
    by_hand.unlink()
    other = raybust.certify("mine", (images, torch.zeros(4)), "certify.n=200", out=out, quiet=True)
    assert len(other.rows) == 4
    assert len(list((out / "mine" / "certified").glob("*.tsv"))) == 1, "other data stay out"


def test_predictions_are_certificates_and_their_noise_is_secret(own):
    images, labels = digits_test()
    fixed = ("certify.n=200", "certify.seed=0")
    rows = raybust.certify(own, (images, labels), *fixed, sigma=0.25, quiet=True).rows
    found = raybust.predict(own, images, *fixed, sigma=0.25)
    assert [(row.predict, row.radius) for row in rows] == [(a.number, a.radius) for a in found]
    one, two = (raybust.predict(own, images, "certify.n=200", sigma=0.25) for _ in range(2))
    assert [a.bound for a in one] != [a.bound for a in two]
    plain = raybust.predict(own, images, plain=True, classes=list("abcdefghij"))
    tops = own(images).argmax(1).tolist()
    assert [answer.label for answer in plain] == ["abcdefghij"[top] for top in tops]
    assert {answer.radius for answer in plain} == {0.0}


class Halves(nn.Module):
    """Logits whose smoothed classifier is known: the sign of the first pixel minus 1/2."""

    def forward(self, images):
        value = images[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


def test_false_radii_of_a_linear_network_are_at_most_alpha():
    """Exact: the true radius is the distance to the plane; each image is asked for a radius just
    above it, where a false answer is most likely."""
    count, alpha, distance = 600, 0.05, 0.2
    images = torch.full((count, 1, 2, 2), 0.5 + distance)
    settings = ("certify.n=500", f"certify.alpha={alpha}")
    found = raybust.predict(Halves(), images, *settings, sigma=0.5, radius=distance + 1e-3)
    false = sum(answer.radius > distance for answer in found)
    assert false <= binom.ppf(0.9999, count, alpha)
    near = raybust.predict(Halves(), images, *settings, sigma=0.5, radius=distance / 4)
    assert sum(answer["safe"] for answer in near.plain()) > 0.8 * count
    assert all(math.isfinite(answer.radius) for answer in near)


def test_results_in_a_folder_of_the_users_resume(own, tmp_path):
    given = digits_test()
    first = raybust.certify(own, given, "certify.n=200", sigma=0.25, out=tmp_path / "kept")
    path = first.files["rows"]
    assert path.is_relative_to(tmp_path / "kept")
    again = raybust.certify(own, given, "certify.n=200", sigma=0.25, out=tmp_path / "kept")
    assert same(first.rows, again.rows)
    temporary = raybust.certify(own, given, "certify.n=200", sigma=0.25, quiet=True)
    place = temporary.files["rows"]
    assert place.exists()
    assert "data:image/png" in temporary._repr_html_()
    del temporary
    gc.collect()
    assert not place.exists(), "temporary results end with their object"


def ask(function, *arguments, **keywords):
    with pytest.raises(RequestError) as found:
        function(*arguments, **keywords)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_mistakes(own, tmp_path):
    images, labels = digits_test()
    certify = raybust.certify
    assert "pass sigma=" in ask(certify, own, (images, labels))
    assert "expected images and labels" in ask(certify, own, sigma=1)
    assert "(images, labels)" in ask(certify, own, images, sigma=1)
    assert "0 to 1" in ask(certify, own, (images * 2, labels), sigma=1).replace("[0, 1]", "0 to 1")
    assert "one label per image" in ask(certify, own, (images, labels[:3]), sigma=1)
    assert "expected from 0 to 9" in ask(certify, own, (images, labels + 10), sigma=1)
    assert "fails on images of (C, H, W) = (1, 4, 8)" in ask(
        certify, own, (images[:, :, :4], labels), sigma=1
    )
    assert "key" in ask(certify, own, (images, labels), "certify.m=3", sigma=1)
    assert "no corruption" in ask(raybust.corrupt, own, (images, labels))
    assert "3 names for 10 logits" in ask(
        raybust.predict, own, images, sigma=1, classes=["a", "b", "c"]
    )
    with pytest.raises(AttributeError, match="certifi"):
        _ = raybust.certifi


def test_importing_the_package_takes_no_time(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        began = time.perf_counter()
        import raybust
        print(time.perf_counter() - began, "torch" in sys.modules)
        assert callable(raybust.certify) and "torch" in sys.modules
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


@pytest.fixture
def mine(tmp_path):
    """A run, its folder and a function that asks with its folder."""
    small_run(tmp_path / "runs" / "mine")
    return tmp_path / "runs"


def test_a_loaded_run_that_changed_does_not_write_into_its_run(mine):
    w = raybust.load("mine", out=mine)
    with torch.no_grad():
        next(w.network.parameters()).add_(1.0)
    assert "load it again" in ask(raybust.certify, w, None, *FAST)
    assert not (mine / "mine" / "certified").exists()
    images, labels = w.dataset.test.fetch(range(6))
    kept = raybust.certify(w, (images, labels), "certify.n=200", out=mine / "kept", quiet=True)
    assert kept.files["rows"].is_relative_to(mine / "kept")
    old = raybust.load("mine", out=mine)
    shutil.rmtree(mine / "mine")
    small_run(mine / "mine", seed=5)
    assert "load it again" in ask(raybust.certify, old, None, *FAST)
    assert "leave it out" in ask(raybust.certify, raybust.load("mine", out=mine), out=mine)


def test_settings_that_what_was_loaded_cannot_follow_are_refused(mine):
    w = raybust.load("mine", out=mine)
    for setting in ("data.path=other.npz", "model.width=99", "method.sigma=0.5", "data.name=npz"):
        assert "call raybust.load with it" in ask(raybust.certify, w, None, setting)
    w.network.train()
    assert raybust.certify(w, None, *FAST, quiet=True).rows, "measured in eval mode"


def test_classes_of_other_names_or_order_are_refused(mine, tmp_path):
    images, labels = digits_test()
    x = images[:, 0].numpy()
    names = [f"class {9 - number}" for number in range(10)]
    y = np.array([9 - int(label) for label in labels])
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "class_names": names}
    np.savez(tmp_path / "own.npz", **arrays)
    small_run(
        mine / "named", data__name="npz", data__path=str(tmp_path / "own.npz"),
        data__validation=0.4, train__batch_size=4,
    )  # fmt: skip
    np.savez(tmp_path / "other.npz", **{**arrays, "class_names": names[::-1]})
    text = ask(
        raybust.certify, "named", str(tmp_path / "other.npz"), "data.validation=0.4", out=mine
    )
    assert "in that order" in text
    np.savez(tmp_path / "own.npz", **{**arrays, "class_names": names[::-1]})
    assert "class 0 was 'class 9' in training, but is 'class 0'" in ask(
        raybust.load, "named", out=mine
    )


class Changed(nn.Module):
    """A network changed by a function of its logits."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, images):
        return self.change(self.network(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z: z[:, :1], "at least 2 classes; turn a single logit"),
        (lambda z: z.argmax(1, keepdim=True), "at least 2 classes"),
        (lambda z: (z > 0).int(), "columns of torch.int32"),
        (lambda z: z[:1].repeat(2, 1), "expected logits (1, K)"),
        (lambda z: z / 0, "not finite"),
        (lambda z: [z], "gives list"),
    ],
)
def test_what_gives_no_logits_of_classes_is_refused(own, change, said):
    images, labels = digits_test()
    network = Changed(own, change)
    for function, given in (
        (raybust.certify, (images, labels)), (raybust.attack, (images, labels)),
        (raybust.predict, images[:3]),
    ):  # fmt: skip
        more = {} if function is raybust.attack else {"sigma": 0.25}
        assert said in ask(function, network, given, **more)


def test_networks_that_cannot_be_measured_are_refused_in_one_line(own):
    images, labels = digits_test()
    stays = Changed(own, lambda z: z)
    stays.train = lambda mode=True: stays
    stays.training = True
    old = nn.utils.weight_norm(nn.Linear(64, 10))
    old(torch.rand(1, 64))
    for network, said in (
        (stays, "stays in training mode"),
        (nn.Sequential(nn.Flatten(), old), "cannot be copied"),
    ):
        assert said in ask(raybust.certify, network, (images, labels), sigma=0.25)


def test_a_network_that_cannot_be_sent_is_certified_in_one_process(capsys):
    network = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))
    )
    images, labels = digits_test()
    found = [
        raybust.certify(network, (images[:6], labels[:6]), "certify.n=200", sigma=0.25, workers=n)
        for n in (1, 2)
    ]
    assert [row.counts for row in found[0].rows] == [row.counts for row in found[1].rows]
    assert "cannot be sent to other processes" in capsys.readouterr().err


def test_a_loaded_run_with_another_function_or_other_images_does_not_write_into_its_run(mine):
    def loaded():
        return raybust.load("mine", out=mine)

    hooked, other = loaded(), loaded()
    hooked.network.register_forward_hook(lambda module, inputs, output: output.roll(1, 1))
    other = replace(other, dataset=replace(other.dataset, test=other.dataset.train))
    for network in (hooked, other):
        assert "load it again" in ask(raybust.certify, network, None, "certify.n=200")


@pytest.mark.parametrize("names", ["numbers as texts", "numbers"])
def test_the_same_names_in_another_order_are_refused(mine, tmp_path, names):
    """Folders sort as texts: 0, 1, 10, 2; labels of arrays are numbers."""
    labels = np.arange(110) % 11
    x = np.random.default_rng(0).random((110, 8, 8), np.float32)
    np.savez(tmp_path / "numbers.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    ordered = sorted(map(str, range(11)))
    texts = [ordered.index(str(label)) for label in labels]
    np.savez(tmp_path / "texts.npz", x_train=x, y_train=texts, x_test=x, y_test=texts,
             class_names=ordered)  # fmt: skip
    first, second = ("texts", "numbers") if names == "numbers" else ("numbers", "texts")
    small_run(mine / "eleven", data__name="npz", data__path=str(tmp_path / f"{first}.npz"),
              data__validation=0.4, train__batch_size=4)  # fmt: skip
    said = ask(raybust.certify, "eleven", str(tmp_path / f"{second}.npz"), "data.validation=0.4",
               out=mine)  # fmt: skip
    assert "in that order" in said
    shutil.copy(tmp_path / f"{second}.npz", tmp_path / f"{first}.npz")
    assert "class 2 was" in ask(raybust.load, "eleven", out=mine)


def test_pil_images_in_a_list_are_read_as_pictures(own):
    """Of a palette, of another color space and turned by EXIF, as single ones are."""
    images, _ = digits_test()
    gray = [Image.fromarray((one[0].numpy() * 255).round().astype(np.uint8)) for one in images[:6]]
    colors = [one.convert("RGB") for one in gray]
    palette = [one.convert("P") for one in gray]
    arrays = [data.images_of(one).fetch(range(6))[0] for one in (colors, palette)]
    assert torch.equal(*arrays)
    turned = gray[0].transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    content = io.BytesIO()
    turned.save(content, "png", exif=turned.getexif())
    read = data.images_of([Image.open(content)]).fetch([0])[0]
    assert torch.equal(read, data.images_of([gray[0]]).fetch([0])[0])
    assert "2 sizes or modes" in ask(data.images_of, [gray[0], colors[0]])


def test_sigma_is_given_once(own):
    images, labels = digits_test()
    said = ask(raybust.certify, own, (images, labels), "certify.sigma=0.5", sigma=0.25)
    assert "leave out one of them" in said


def test_images_that_are_nearly_black_are_noted(own, capsys):
    images, labels = digits_test()
    levels = (images * 16).to(torch.uint8)
    raybust.certify(own, (levels[:3], labels[:3]), "certify.n=100", sigma=0.25)
    assert "nearly black" in capsys.readouterr().err


def test_a_pair_of_examples_is_a_dataset_of_two(own):
    images, labels = digits_test()
    two = tuple((images[at], int(labels[at])) for at in range(2))
    found = [
        raybust.certify(own, data, "certify.n=100", sigma=0.25)
        for data in (two, list(two), (images[:2], labels[:2]))
    ]
    assert len({str([row.counts for row in one.rows]) for one in found}) == 1


@pytest.mark.parametrize("labels", ["text", "one-hot", "halves"])
def test_labels_of_a_torch_dataset_mean_what_those_of_arrays_mean(own, labels):
    images, truth = digits_test()
    if labels == "halves":
        text = ask(
            raybust.certify, own, [(i, float(t) + 0.5) for i, t in zip(images, truth, strict=True)],
            sigma=1,
        )  # fmt: skip
        assert "labels" in text
        return
    forms = {"text": list(map(str, truth.tolist())), "one-hot": np.eye(10)[truth.numpy()]}
    pairs = list(zip(images, forms[labels], strict=True))
    found = raybust.certify(own, pairs, "certify.n=200", sigma=0.25, quiet=True)
    assert [row.label for row in found.rows] == truth.tolist()


def test_pictures_of_any_mode_are_converted(own):
    images, truth = digits_test()
    gray = [Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8)) for image in images]
    plain = raybust.certify(
        own, [(one, int(t)) for one, t in zip(gray, truth, strict=True)], "certify.n=200",
        sigma=0.25, quiet=True,
    )  # fmt: skip
    assert sum(row.correct for row in plain.rows) >= 8
    color = [one.convert("RGB") for one in gray]
    network = nn.Sequential(Gray(), own)
    tops = raybust.predict(network, np.stack([np.asarray(one) for one in color]), plain=True)
    for mode in ("P", "RGBA", "HSV"):
        given = [(one.convert(mode), int(t)) for one, t in zip(color, truth, strict=True)]
        rows = raybust.certify(network, given, "certify.n=200", sigma=0.02, quiet=True).rows
        assert [row.top for row in rows] == [one.number for one in tops]


class Gray(nn.Module):
    """The mean of the channels."""

    def forward(self, images):
        return images.mean(1, keepdim=True)


def test_numbers_of_numpy_are_numbers(own):
    given = digits_test()
    found = raybust.certify(own, given, "certify.n=200", sigma=np.float64(0.25), quiet=True)
    assert found.rows
    asked = raybust.predict(own, given[0], "certify.n=200", sigma=0.25, radius=np.float32(0.1))
    assert asked.radius == pytest.approx(0.1)
    two = [(given[0][0], given[1][0]), (given[0][1], given[1][1])]
    assert len(raybust.certify(own, two, "certify.n=200", sigma=0.25, quiet=True).rows) == 2


def test_networks_that_change_their_input_or_give_other_types_are_told(own):
    images, labels = digits_test()

    class InPlace(nn.Module):
        def forward(self, images):
            return own(images.sub_(0.1))

    for network, said in (
        (InPlace(), "changes its input images in place"),
        (Changed(own, lambda z: z.double()), "logits of torch.float64, expected float32"),
        (copy.deepcopy(own).half(), "its weights are torch.float16: call .float()"),
    ):
        assert said in ask(raybust.attack, network, (images, labels), eps=0.1)


def test_torchscript_networks_are_attacked(own):
    images, labels = digits_test()
    asked = ("evaluate.examples=10", "evaluate.attacks=[fgsm,pgd]")
    whole = raybust.attack(own, (images, labels), *asked, eps=0.1, quiet=True).metrics
    for script in (torch.jit.trace(own, images[:2]), torch.jit.script(own)):
        found = raybust.attack(script, (images, labels), *asked, eps=0.1, quiet=True).metrics
        assert found["attacked/robust_accuracy"] == whole["attacked/robust_accuracy"]


@pytest.mark.parametrize("eps", [np.float32(0.5), torch.tensor(0.5), np.array([0.25, 0.5]), [0.5]])
def test_radii_are_numbers_of_any_kind(own, eps):
    images, labels = digits_test()
    asked = ("evaluate.examples=4", "evaluate.attacks=[fgsm]")
    found = raybust.attack(own, (images, labels), *asked, eps=eps, quiet=True).metrics
    assert "attacked/linf_0.5/robust_accuracy" in found


def test_radii_are_texts_as_on_the_command_line(own):
    images, labels = digits_test()
    asked = ("evaluate.examples=8", "evaluate.attacks=[fgsm]")
    keys = {}
    for eps in ("8/255", ["8/255"], 8 / 255, ["2/255", 8 / 255]):
        found = raybust.attack(own, (images, labels), *asked, eps=eps, quiet=True).metrics
        keys[str(eps)] = {key: value for key, value in found.items() if "robust" in key}
    one, listed, number, two = keys.values()
    assert one == listed == number
    assert one.items() < two.items()
    for wrong in (["a"], {"a": 1}, "abc"):
        with pytest.raises(RequestError, match=r"eps: got .*(a|abc)"):
            raybust.attack(own, (images, labels), *asked, eps=wrong, quiet=True)


def test_train_takes_settings(own):
    with pytest.raises(RequestError, match=r"settings: got Net, .*model.name=module:callable"):
        raybust.train(own)
