"""Search spaces: read, checked against the schema, sampled by Optuna."""

import math

import optuna
import pytest
import yaml

from raybust import methods
from raybust.config import Leaf
from raybust.errors import RequestError
from raybust.search.space import Space, at

TEXT = """
train.lr: {float: [0.005, 0.5], log: true, default: 0.05}
train.epochs: {int: [2, 10], step: 2}
train.ema: {float: [0.0, 0.9], step: 0.3, default: 0.3}
train.batch_size: {int: [16, 256], log: true}
train.optimizer: {choice: [sgd, adamw], default: adamw}
train.clip_norm: {choice: [null, 1.0], when: {train.optimizer: adamw}}
method.name: {choice: [standard, gaussian]}
method.sigma: {float: [0.1, 1.0], log: true, when: {method.name: gaussian}}
train.momentum: {float: [0.0, 0.9], when: {method.name: [gaussian], train.optimizer: sgd}}
"""


def parse(text):
    return Space.parse(yaml.safe_load(text))


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def points():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(200):
        trial = study.ask()
        found.append(parse(TEXT).suggest(trial))
        assert trial.params == found[-1]
        study.tell(trial, 0.0)
    return found


def test_every_sample_lies_in_its_domain(points):
    domains = {domain.key: domain for domain in parse(TEXT).domains}
    for point in points:
        for key, value in point.items():
            assert domains[key].contains(value), (key, value)
        parse(TEXT).check_point(point)


def test_conditions(points):
    for point in points:
        gaussian, sgd = point["method.name"] == "gaussian", point["train.optimizer"] == "sgd"
        assert ("method.sigma" in point) == gaussian
        assert ("train.clip_norm" in point) == (not sgd)
        assert ("train.momentum" in point) == (gaussian and sgd)
    assert len({frozenset(point) for point in points}) == 4


def test_steps_and_scales(points):
    assert {point["train.epochs"] for point in points} == {2, 4, 6, 8, 10}
    assert {round(point["train.ema"], 9) for point in points} == {0.0, 0.3, 0.6, 0.9}
    for key, low, high in (("train.lr", 0.005, 0.5), ("train.batch_size", 16, 256)):
        below = sum(point[key] < math.sqrt(low * high) for point in points)
        assert 70 <= below <= 130, f"{key} is not log-uniform"
    linear = [p["train.momentum"] for p in points if "train.momentum" in p]
    assert 0.3 <= sum(value < 0.45 for value in linear) / len(linear) <= 0.7


def test_every_sample_is_a_configuration(points):
    for point in points[::8]:
        config = at([Leaf("train.lr", 9.0, "file")], point, methods.get)
        assert config.train.lr == point["train.lr"]
        assert config.method.key == point["method.name"]
        if "method.sigma" in point:
            assert config.method.sigma == point["method.sigma"]


def test_first_points_are_the_defaults_of_each_method():
    """A domain's own default, else the schema's if the domain contains it, else it is drawn."""
    shared = {"train.lr": 0.05, "train.ema": 0.3, "train.batch_size": 128}
    shared |= {"train.optimizer": "adamw"}  # but neither the 30 epochs nor the clipping at 2
    assert parse(TEXT).first_points([], methods.get) == [
        {"method.name": "standard", **shared},
        {"method.name": "gaussian", "method.sigma": 0.25, **shared},
    ]
    lr = parse("train.lr: {float: [0.01, 1.0]}")
    assert lr.first_points([], methods.get) == [{"train.lr": 0.05}]


def test_first_points_are_enqueued_and_drawn():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for first in parse(TEXT).first_points([], methods.get):
        study.enqueue_trial(parse(TEXT).named(first))
        assert parse(TEXT).suggest(study.ask()).items() >= first.items()


# One key, several domains

TWO = """
method.name: {choice: [trades, macer, standard]}
method.beta@trades: {float: [1.0, 12.0], when: {method.name: trades}}
method.beta@macer: {float: [2.0, 32.0], default: 16.0, when: {method.name: macer}}
train.ema: {float: [0.0, 0.5], when: {method.name: [trades, macer]}}
"""


def test_a_key_may_have_a_domain_for_each_condition():
    space = parse(TWO)
    space.check([], methods.get)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {}
    for _ in range(100):
        trial = study.ask()
        point = space.suggest(trial)
        assert space.contains(point)
        assert trial.params == space.named(point)
        assert space.distributions(point) == trial.distributions
        seen.setdefault(point["method.name"], []).append(point.get("method.beta"))
        study.tell(trial, 0.0)
    assert set(seen["standard"]) == {None}
    assert max(seen["trades"]) <= 12 < max(seen["macer"])
    assert min(seen["trades"]) < 2 <= min(seen["macer"])
    assert [p.get("method.beta") for p in space.first_points([], methods.get)] == [6.0, 16.0, None]


@pytest.mark.parametrize(
    ("point", "within"),
    [
        ({"method.name": "standard"}, True),
        ({"method.name": "standard", "method.beta": 6.0}, False),
        ({"method.name": "trades", "method.beta": 6.0, "train.ema": 0.1}, True),
        ({"method.name": "trades", "method.beta": 20.0, "train.ema": 0.1}, False),
        ({"method.name": "macer", "method.beta": 20.0, "train.ema": 0.1}, True),
        ({"method.name": "trades", "train.ema": 0.1}, False),
    ],
)
def test_a_space_contains_whole_points_alone(point, within):
    assert parse(TWO).contains(point) == within


def test_domains_of_one_key_must_exclude_each_other():
    text = TWO + "method.beta@again: {float: [1.0, 2.0], when: {method.name: [macer, standard]}}"
    with pytest.raises(RequestError, match=r"overlaps method.beta@macer; give each a `when`"):
        parse(text)


def test_a_point_of_the_user_is_held_against_the_domain_of_its_condition():
    space = parse(TWO)
    space.check_point({"method.name": "macer", "method.beta": 20.0})
    with pytest.raises(RequestError, match=r"got 20.0, expected float in \[1, 12\]"):
        space.check_point({"method.name": "trades", "method.beta": 20.0})
    with pytest.raises(RequestError, match=r"the keys of its `when` as well"):
        space.check_point({"method.beta": 6.0})


def test_samples_survive_the_database(tmp_path):
    """A resumed sweep reads back what was drawn."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="s")
    drawn = [parse(TEXT).suggest(study.ask()) for _ in range(5)]
    again = optuna.load_study(storage=url, study_name="s")
    assert [trial.params for trial in again.get_trials()] == drawn


def test_check_accepts():
    parse(TEXT).check([], methods.get)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lrr: {float: [0.1, 1]}", "Did you mean 'train.lr'"),
        ("train.momentum: {float: [0.1, 1]}", "train.momentum: got 1"),
        ("train.lr: {float: [0, 1]}", "train.lr: got 0"),
        ("train.epochs: {float: [1.5, 3.5]}", "train.epochs: got 1.5, expected int"),
        ("data.augment: {choice: [none, rotate]}", "'rotate'"),
        ("method.name: {choice: [standard, gausian]}", "Did you mean 'gaussian'"),
        (
            "method.name: {choice: [standard, gaussian]}\n"
            "method.sigma: {float: [0.1, 1], when: {method.name: standard}}",
            "unknown key 'method.sigma'",
        ),
    ],
)
def test_check_refuses(text, words):
    with pytest.raises(RequestError, match=r"^search: ") as error:
        parse(text).check([], methods.get)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "out", "tune.trials", "cluster.workers", "cluster.workers@some",
        "certify.sigma", "evaluate.examples", "corruptions.seed", "certified_fast.n",
        "attacked_fast.steps", "data.limit", "data.split_seed", "data.image_size",
        "train.passes", "train.seconds",
    ],
)  # fmt: skip
def test_check_refuses_what_trials_are_compared_by(key):
    """Where trials run, how and on what they are measured, and their budget."""
    space = parse(f"{key}: {{choice: [1, 2]}}\ntrain.lr: {{float: [0.01, 0.1]}}")
    with pytest.raises(RequestError) as error:
        space.check([], methods.get)
    key = key.partition("@")[0]
    assert error.value.problems == (
        f"search: {key}: must be the same for all trials of a sweep; set it outside `search`",
    )


def test_check_takes_what_data_has_for_training_alone():
    parse("data.augment: {choice: [none, flip]}\nseed: {int: [0, 9]}").check([], methods.get)


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        ("train.epochs: {int: [2, 10]}", 10),
        ("train.epochs: {choice: [20, 4]}", 20),
        ("train.lr: {float: [0.1, 0.2]}", 30),
        ("method.name: {choice: [pgd, trades]}\n"
         "train.epochs: {int: [2, 10], when: {method.name: pgd}}", 30),
    ],
)  # fmt: skip
def test_the_largest_value_of_a_key(text, largest):
    assert parse(text).largest("train.epochs", 30) == largest


def test_fractions_are_numbers():
    (domain,) = parse("method.eps: {float: [2/255, 16/255], default: 8/255}").domains
    assert (domain.values, domain.default) == ((2 / 255, 16 / 255), 8 / 255)
    (steps,) = parse("method.eps: {float: [2/255, 8/255], step: 2/255}").domains
    assert steps.grid() == pytest.approx([2 / 255, 4 / 255, 6 / 255, 8 / 255])
    parse("method.eps: {choice: [4/255, 8/255]}").check(
        [Leaf("method.name", "pgd", "here")], methods.get
    )


def test_check_refuses_a_key_that_is_fixed_as_well():
    with pytest.raises(RequestError, match=r"train.lr: is also set to 0.1 \(command line\)"):
        parse(TEXT).check([Leaf("train.lr", 0.1, "command line")], methods.get)


def test_check_keeps_what_is_fixed():
    """Domains are checked against the file's own values, and nested conditions are followed."""
    text = (
        "train.optimizer: {choice: [sgd, adamw]}\n"
        "method.name: {choice: [standard, gaussian], when: {train.optimizer: adamw}}\n"
        "method.sigma: {float: [0.1, 1], when: {method.name: gaussian}}"
    )
    parse(text).check([], methods.get)
    with pytest.raises(RequestError, match=r"multiple of cluster\.workers = 3"):
        parse("train.batch_size: {choice: [30, 40]}").check(
            [Leaf("cluster.workers", 3, "file")], methods.get
        )


def test_all_problems_at_once():
    text = "train.lr: {float: [2, 1]}\ntrain.epochs: {int: [1, 2], default: 9}\ntrain.ema: 3"
    with pytest.raises(RequestError) as error:
        parse(text)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("train.lr", [0.005, 0.5, 0.1], [0.004, 0.51, "0.1", None, True, math.nan]),
        ("train.epochs", [2, 10, 4.0], [3, 0, 12, 2.5, True]),
        ("train.ema", [0.0, 0.3, 0.9], [0.1, 1.2]),
        ("train.optimizer", ["sgd"], ["adam", None, 1]),
        ("train.clip_norm", [None, 1.0], [2.0]),
    ],
)
def test_contains(key, inside, outside):
    domain = next(domain for domain in parse(TEXT).domains if domain.key == key)
    for value in inside:
        assert domain.contains(value), value
    for value in outside:
        assert not domain.contains(value), value


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"train.l": 1}, "Did you mean 'train.lr'"),
        ({"train.lr": 5}, "train.lr: got 5, expected float in [0.005, 0.5], log"),
        ({"train.optimizer": "adam"}, "expected one of sgd, adamw"),
    ],
)
def test_points_are_checked(point, words):
    with pytest.raises(RequestError) as error:
        parse(TEXT).check_point(point)
    assert words in str(error.value)


def test_rows():
    rows = {key: rest for key, *rest in parse(TEXT).rows()}
    assert rows["train.lr"] == ["float in [0.005, 0.5], log", "0.05", ""]
    assert rows["train.epochs"] == ["int in [2, 10], step 2", "", ""]
    assert rows["train.momentum"][2] == "method.name in gaussian; train.optimizer in sgd"
