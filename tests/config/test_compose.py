"""Composing, checking and serializing configurations."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from raybust import methods as registry
from raybust.config import (
    Config,
    Leaf,
    compose,
    difference,
    from_dict,
    leaves_of,
    leaves_of_arguments,
    option,
    read_yaml,
    to_dict,
)
from raybust.errors import RequestError, unknown
from raybust.methods import Method
from raybust.methods.gaussian import Gaussian
from raybust.methods.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """A toy method that wraps another."""

    base: Method = field(default_factory=Gaussian)
    share: float = option(0.5, "Share of the batch that is mixed.", ge=0, le=1)
    weights: tuple[float, ...] = option((1.0, 2.0), "Weights.", gt=0)

    def problems(self):
        found = super().problems()
        if len(self.weights) != 2:
            found.append(f"weights: got {len(self.weights)} of them, expected 2")
        return found


Mixup.key = "mixup"
TOYS = {"mixup": Mixup, "gaussian": Gaussian, "standard": Standard}


def lookup(name):
    if name not in TOYS:
        raise unknown("method", name, TOYS)
    return TOYS[name]


def made(*arguments, before=()):
    return compose([*before, *leaves_of_arguments(arguments)], lookup)


def refused(*arguments, before=()):
    with pytest.raises(RequestError) as error:
        made(*arguments, before=before)
    return str(error.value)


def test_defaults():
    assert made() == Config(method=Standard())


@pytest.mark.parametrize(
    ("argument", "section", "key", "value"),
    [
        ("train.lr=1e-3", "train", "lr", 1e-3),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.clip_norm=null", "train", "clip_norm", None),
        ("train.compile=true", "train", "compile", True),
        ("certify.radii=[0, 0.5]", "certify", "radii", (0.0, 0.5)),
        ("model.mean=[0.1]", "model", "mean", (0.1,)),
        ("data.path=a=b", "data", "path", "a=b"),
        ("data.path=10", "data", "path", "10"),
        ("data={name: npz, path: x}", "data", "path", "x"),
        ("tune.points=[{train.lr: 0.1}]", "tune", "points", ({"train.lr": 0.1},)),
        ("train.epochs=${train.keep}", "train", "epochs", 2),
    ],
)
def test_values(argument, section, key, value):
    found = getattr(getattr(made(argument), section), key)
    assert found == value
    assert type(found) is type(value)


def test_later_wins():
    file = [Leaf("train.lr", 0.5, "a.yaml"), Leaf("train.epochs", 7, "a.yaml")]
    config = made("train.lr=0.1", "train.lr=0.2", before=file)
    assert (config.train.lr, config.train.epochs) == (0.2, 7)


def test_later_method_wins_with_its_fields():
    file = [Leaf("method.name", "standard", "a.yaml")]
    assert made("method.name=gaussian", "method.sigma=1", before=file).method == Gaussian(sigma=1.0)


def test_methods_compose():
    assert made("method.name=mixup").method == Mixup()
    config = made(
        "method.name=mixup",
        "method.share=0.25",
        "method.base.name=mixup",
        "method.base.weights=[3, 4]",
        "method.base.base.name=gaussian",
        "method.base.base.sigma=1",
    )
    inner = Mixup(weights=(3.0, 4.0), base=Gaussian(sigma=1.0))
    assert config.method == Mixup(share=0.25, base=inner)
    assert from_dict(json.loads(json.dumps(to_dict(config))), lookup) == config


def test_a_value_is_kept_when_the_default_base_stays():
    assert made("method.name=mixup", "method.base.sigma=1").method.base == Gaussian(sigma=1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method.name=mixupp"], ["unknown method 'mixupp'", "Did you mean 'mixup'"]),
        (["method.name=mixup", "method.base.name=gausian"], ["'gausian'", "'gaussian'"]),
        (
            ["method.name=mixup", "method.base.name=standard", "method.base.sigma=1"],
            ["'method.base.sigma'", "Keys of 'method.base': name"],
        ),
        (["method.name=mixup", "method.base.sigma=-1"], ["method.base.sigma: got -1.0", "command"]),
        (["method.name=mixup", "method.base.base.name=gaussian"], ["method.base.base"]),
        (["method.name=mixup", "method.share=2"], ["method.share: got 2.0, expected >= 0, <= 1"]),
        (
            ["method.name=mixup", "method.weights=[1]"],
            ["method.weights: got 1 of them, expected 2"],
        ),
        (["method.name=mixup", "method.shar=2"], ["'method.shar'", "Did you mean 'method.share'"]),
        (["method.name=mixup", "method.base=gaussian"], ["method.base", "method.base.name"]),
        (["method.base.name=gaussian"], ["'method.base.name'"]),
    ],
)
def test_wrong_methods(arguments, words):
    text = refused(*arguments)
    for word in words:
        assert word in text


def test_errors_name_their_source():
    leaves = [Leaf("train.epochs", "x", "a.yaml"), Leaf("train.lrr", 1, "b.yaml")]
    text = refused("seed=a", before=leaves)
    assert "train.epochs: got 'x', expected int (a.yaml)" in text
    assert "'train.lrr'" in text
    assert "(b.yaml)" in text
    assert "seed: got 'a', expected int (command line)" in text


def test_the_last_source_of_a_key_is_named():
    assert "(command line)" in refused("seed=-1", before=[Leaf("seed", 3, "a.yaml")])


def test_references_to_other_keys():
    config = made("certify.n0=77", "certify.n=${certify.n0}", "name=run-${certify.n0}-${seed}")
    assert config.certify.n == 77
    assert config.name == "run-77-0"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "x${oc.env:HOME}y",
        "${seed}${oc.env:HOME}",
        "${oc.env:${name}}",
        "${${name}}",
        "\\${oc.env:HOME}",
        "\\\\${oc.env:HOME}",
        "${oc.env:HOME,x}",
        "${ oc.env:HOME}",
        "${oc.env:HOME",
        "a\n${oc.env:HOME}",
    ],
)
@pytest.mark.parametrize(
    ("key", "wrap"),
    [
        ("data.root", lambda text: text),
        ("name", lambda text: text),
        ("model.mean", lambda text: [text]),
        ("tune.points", lambda text: [{"a": text}]),
        ("tune.points", lambda text: [{"a": [{"b": text}]}]),
        ("tune.points", lambda text: [{text: 1}]),
    ],
)
def test_nothing_else_is_interpolated(monkeypatch, key, wrap, value):
    monkeypatch.setenv("HOME", "/secret")
    with pytest.raises(RequestError, match=f"^{key}: ") as error:
        compose([Leaf("name", "HOME", "file"), Leaf(key, wrap(value), "file")], lookup)
    assert "/secret" not in str(error.value)


@pytest.mark.parametrize("reference", ["${train.epochs}", "${no.such}", "${data}"])
def test_wrong_references(reference):
    text = refused(f"train.epochs={reference}")
    assert text.startswith("train.epochs: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: {b: 1, b: 2}", "duplicate key"),
        ("- 1", "expected a mapping"),
        ("text", "mapping"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: ${b", "a.yaml"),
    ],
)
def test_wrong_files(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(RequestError) as error:
        compose(leaves_of(read_yaml(path), str(path)), lookup)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "a.yaml") == {}


@pytest.mark.parametrize("argument", ["train.lr", "=1", "1a=2", "train lr=2", "a=[1", "-x=1"])
def test_wrong_arguments(argument):
    with pytest.raises(RequestError):
        made(argument)


def every_method():
    return [registry.get(name)() for name in registry.names()]


@pytest.mark.parametrize("method", every_method(), ids=lambda method: method.key)
def test_round_trip(method):
    config = Config(method=method, name="x", certify=replace(Config().certify, radii=(0.0, 1.0)))
    for plain in (
        to_dict(config),
        json.loads(json.dumps(to_dict(config), allow_nan=False)),
        yaml.safe_load(yaml.safe_dump(to_dict(config))),
    ):
        assert from_dict(plain, registry.get) == config
        assert compose(leaves_of(plain, "file"), registry.get) == config


def test_points_survive_a_round_trip():
    config = made("tune.points=[{train.lr: 0.1, train.epochs: 2}, {train.lr: 0.2}]")
    plain = json.loads(json.dumps(to_dict(config)))
    assert compose(leaves_of(plain, "file"), lookup) == config
    assert from_dict(plain, lookup) == config


def test_dry_run_composes_to_the_same(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["method.name=gaussian", "method.sigma=0.3", "train.lr=1e-4", "certify.radii=[0,1]"]
    first = cli("train", "--dry-run", *arguments, "--name", "some-name", "--workers", "2")
    assert first.code == 0
    assert first.err == ""
    Path("again.yaml").write_text(first.out)
    second = cli("train", "--dry-run", "again.yaml")
    assert yaml.safe_load(second.out) == yaml.safe_load(first.out)
    config = compose(leaves_of(read_yaml("again.yaml"), "file"), registry.get)
    assert config.method == Gaussian(sigma=0.3)
    assert config.cluster.workers == 2
    as_json = cli("train", "--dry-run", "--json", "again.yaml")
    assert json.loads(as_json.out) == to_dict(config)


def test_difference():
    old, new = (to_dict(made(a)) for a in ("seed=1", "method.name=gaussian"))
    assert list(difference(old, new)) == [
        "method.name: standard -> gaussian",
        "method.sigma: None -> 0.25",
        "seed: 1 -> 0",
    ]
    assert list(difference(old, old)) == []


def test_from_dict_checks():
    plain = to_dict(made())
    plain["train"]["epochs"] = 0
    plain["seed"] = -1
    with pytest.raises(RequestError) as error:
        from_dict(plain, lookup)
    assert [text.partition(":")[0] for text in error.value.problems] == ["train.epochs", "seed"]


def test_errors_survive_processes():
    import pickle

    error = RequestError("a: wrong", "b: too")
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == "a: wrong; b: too"


def test_unknown():
    assert "Did you mean" not in str(unknown("method", "zzz", ["pgd"]))
    assert str(unknown("method", "pgdd", ["trades", "pgd"])) == (
        "unknown method 'pgdd'. Did you mean 'pgd'? Available: pgd, trades."
    )


@pytest.mark.parametrize(
    ("text", "section", "field", "value"),
    [
        ("evaluate.eps=8/255", "evaluate", "eps", (8 / 255,)),
        ("evaluate.eps=0.5", "evaluate", "eps", (0.5,)),
        ("evaluate.eps=[2/255, 4/255]", "evaluate", "eps", (2 / 255, 4 / 255)),
        ("train.lr=1/16", "train", "lr", 1 / 16),
        ("attacked_fast.eps=8 / 255", "attacked_fast", "eps", 8 / 255),
        ("train.clip_norm=1/2", "train", "clip_norm", 0.5),
        ("data.background=1", "data", "background", (1.0,)),
        ("evaluate.attacks=pgd", "evaluate", "attacks", ("pgd",)),
        ("data.path=a/b", "data", "path", "a/b"),
    ],
)
def test_a_fraction_is_a_number_and_one_value_a_list_of_one(text, section, field, value):
    config = compose(leaves_of_arguments([text]), registry.get)
    assert getattr(getattr(config, section), field) == value
