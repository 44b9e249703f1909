"""`raybust gate`: a team's rules, decided on the same images, with exit codes of their own."""

import json
import shutil
from xml.etree import ElementTree

import pytest
import yaml
from masked import ROUNDED
from small_run import small_run

RULES = {
    "reference": "strong", "examples": 60, "cap": 60,
    "certify": {"n": 200, "sigma": 0.25}, "evaluate": {"attacks": ["pgd"], "norm": "linf"},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("gated") / "runs"
    small_run(out / "strong", train__epochs=8)
    small_run(out / "weak", train__epochs=1)
    return out


@pytest.fixture
def ask(trained, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs")

    def run(rules, name, *words, **changes):
        with open("gate.yaml", "w") as file:
            yaml.safe_dump(RULES | changes | {"rules": rules}, file)
        return cli("gate", "gate.yaml", name, *words)

    return run


def test_a_worse_network_fails_and_the_reference_itself_does_not(ask):
    rules = [
        {"column": "certified at 0.25", "not_worse_by": 5},
        {"column": "clean", "at_least": 0.5},
    ]
    done = ask(rules, "weak", "--json", "--junit", "junit.xml")
    assert done.code == 1
    found = json.loads(done.out)
    assert (found["state"], found["candidate"], found["reference"]) == ("failed", "weak", "strong")
    assert found["rules"][0]["state"] == "failed"
    suite = ElementTree.parse("junit.xml").getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    assert suite[0].find("failure") is not None
    assert ask(rules, "strong").code == 0


def test_undecided_rules_order_more_images_up_to_the_cap(ask):
    rules = [{"column": "ACR", "not_worse_by": 0.0}]
    done = ask(rules, "strong", "--json", examples=20, cap=70)
    assert done.code == 3
    found = json.loads(done.out)
    assert (found["state"], found["images"]) == ("undecided", 70)
    assert found["level"] == pytest.approx(0.05 / 3)
    assert [f"gate.yaml: {count} images" in done.err for count in (20, 40, 70)] == [True] * 3


def test_the_values_are_those_of_certify_and_evaluate(ask, cli):
    columns = ("ACR", "robust at 8/255", "clean", "certified at 0.5")
    rules = [{"column": column, "at_least": 0.0} for column in columns]
    done = ask(rules, "strong", "--json")
    values = {one["rule"].partition(" at least")[0]: one["value"]
              for one in json.loads(done.out)["rules"]}  # fmt: skip
    certified = cli("certify", "strong", "certify.n=200", "certify.sigma=0.25",
                    "certify.examples=60", "--json", "--name", "own")  # fmt: skip
    metrics = json.loads(certified.out)["metrics"]
    assert values["ACR"] == pytest.approx(metrics["certified/acr"])
    assert values["certified at 0.5"] == pytest.approx(metrics["certified/accuracy_at/0.5"])
    attacked = cli("evaluate", "strong", "evaluate.attacks=[pgd]", "evaluate.eps=8/255",
                   "evaluate.examples=60", "--json", "--name", "own")  # fmt: skip
    metrics = json.loads(attacked.out)["metrics"]
    assert values["robust at 8/255"] == pytest.approx(metrics["attacked/robust_accuracy"])
    assert values["clean"] == pytest.approx(metrics["attacked/clean_accuracy"])


def test_the_reference_is_measured_as_the_candidate_is(ask, tmp_path):
    """Whatever settings of certificates its own training had."""
    small_run(tmp_path / "runs" / "other", train__epochs=8, certify__norm="linf", certify__n=500)
    rules = [{"column": "ACR", "not_worse_by": 0.01}]
    assert ask(rules, "strong", reference="other").code == 3, "equal networks, equal protocols"
    small_run(tmp_path / "runs" / "noisy", method__sigma=0.5)
    done = ask(rules, "strong", reference="noisy", certify={"n": 200})
    assert done.code == 2
    assert "were trained with 0.25 and 0.5; set the one at which both" in done.err
    assert ask([{"column": "clean", "at_least": 0.1}], "strong", certify={"n": 200}).code == 0


def test_there_are_no_more_looks_than_images(ask):
    rules = [{"column": "ACR", "not_worse_by": 0.0}]
    done = ask(rules, "strong", "--json", examples=200, cap=5000, certify={"n": 100, "sigma": 0.25})
    found = json.loads(done.out)
    assert (found["images"], found["level"]) == (359, 0.05 / 2)


def test_an_edited_rule_is_decided_anew(ask):
    for radius, least in (("4/255", 0.1), ("8/255", 0.1), ("8/255", 0.05)):
        assert ask([{"column": f"robust at {radius}", "at_least": least}], "strong").code == 0


def test_clean_accuracy_needs_no_attack(ask):
    rules = [{"column": "clean", "at_least": 0.5}]
    assert ask(rules, "strong", evaluate={"attacks": []}).code == 0
    done = ask([{"column": "robust at 0.1", "at_least": 0.5}], "strong", evaluate={"attacks": []})
    assert done.code == 2
    assert "evaluate.attacks: got none" in done.err


def test_early_stopping_is_off(ask):
    rules = [{"column": "ACR", "at_least": 0.01}, {"column": "certified at 0.5", "at_least": 0.0}]
    values = []
    for part in ({"n": 200, "sigma": 0.25}, {"n": 200, "sigma": 0.25, "radius": 0.25}):
        found = json.loads(ask(rules, "strong", "--json", certify=part).out)
        values.append([one["value"] for one in found["rules"]])
    assert values[0] == values[1]


def test_other_settings_or_weights_have_results_of_their_own(ask):
    rules = [{"column": "ACR", "at_least": 0.01}]
    assert ask(rules, "strong").code == 0
    assert ask(rules, "strong", certify={"n": 100, "sigma": 0.25}).code == 0
    assert ask(rules, "strong", "certify.n=150").code == 0
    shutil.rmtree("runs/strong/epoch-000008")
    done = ask(rules, "strong")
    assert done.code == 2
    assert "warning: strong has not finished training: epoch 7" in done.err
    assert "--no-resume sets it aside and measures again" in done.err
    assert "--name" not in done.err
    assert ask(rules, "strong", "--no-resume").code == 0


@pytest.fixture
def masked(trained, tmp_path, monkeypatch):
    """A run whose network rounds its input, so that pgd follows no gradient."""
    (tmp_path / "rounded_gate.py").write_text(ROUNDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    if not (trained / "masked").exists():
        small_run(trained / "masked", model__name="rounded_gate:Rounded")
    return "masked"


def test_robust_accuracy_that_attacks_could_not_measure_never_passes(masked, ask):
    word = "model.name=rounded_gate:Rounded"
    robust, clean = ({"column": name, "at_least": 0.3} for name in ("robust at 0.15", "clean"))
    done = ask([robust, clean], masked, word, "--junit", "junit.xml", cap=240)
    assert done.code == 3, done.out
    assert "on 60 images" in done.out, "more images prove nothing"
    assert "DISTRUST (flat_gradients), masked: " in done.out
    assert "is an upper bound (flat_gradients, large_eps): the rule can fail but not" in done.out
    suite = ElementTree.parse("junit.xml").getroot()
    assert "(flat_gradients, large_eps)" in suite[0].find("skipped").get("message")
    assert suite[1].find("skipped") is None
    assert "DISTRUST (flat_gradients)" in suite.find("system-out").text
    found = json.loads(ask([robust, clean], masked, word, "--json").out)
    assert [one["state"] for one in found["rules"]] == ["undecided", "passed"]
    assert [one["flags"] for one in found["rules"]] == [["flat_gradients", "large_eps"], []]
    assert found["rules"][0]["p_passes"] < found["level"]
    assert "DISTRUST (flat_gradients)" in found["flags"][0]


def test_a_network_that_is_no_function_of_one_image_is_named(masked, ask, tmp_path):
    small_run(tmp_path / "runs" / "random", model__name="rounded_gate:Random", train__epochs=1)
    done = ask([{"column": "clean", "at_least": 0.1}], "random", "model.name=rounded_gate:Random")
    assert "warning: the network is not a function of one image: two passes" in done.err
    assert "on 60 images of the test set" in done.out


def test_flagged_robust_accuracy_fails_and_does_not_pass_against_a_reference(masked, ask):
    word = "model.name=rounded_gate:Rounded"
    assert ask([{"column": "robust at 0.15", "at_least": 0.99}], masked, word).code == 1
    rule = {"column": "robust at 0.15", "not_worse_by": 20}
    done = ask([rule], masked, word, reference=masked)
    assert done.code == 3
    assert "the reference's robust accuracy is an upper bound (flat_gradients" in done.out


@pytest.mark.parametrize(
    ("rules", "changes", "said"),
    [
        ([], {}, "has no rules"),
        ([{"column": "clean"}], {}, "rule 1: expected one of at_least and not_worse_by"),
        ([{"column": "clean", "at_least": 1, "not_worse_by": 1}], {}, "expected one of"),
        ([{"column": "speed", "at_least": 1}], {}, "column: got 'speed', expected clean, ACR,"),
        ([{"column": "clean", "at_least": 40}], {}, "got 40, expected a share between 0 and 1"),
        (5, {}, "rules: got 5, expected a list of rules"),
        ([{"column": "robust at 8/0", "at_least": 0.4}], {}, "expected a radius > 0"),
        ([{"column": "robust at 0", "at_least": 0.4}], {}, "expected a radius > 0"),
        ([{"column": "certified at 1-2", "at_least": 0.4}], {}, "column: got 'certified at 1-2'"),
        ([{"column": "certified at 1e400", "at_least": 0.4}], {}, "column: got 'certified at"),
        ([{"column": "clean", "not_worse_by": 150}], {}, "got 150, expected at most 100 points"),
        ([{"column": "clean", "at_least": "much"}], {}, "got 'much', expected a number >= 0"),
        ([{"column": "clean", "not_worse_by": 1}], {"reference": None}, "reference: is missing"),
        ([{"column": "clean", "at_least": 0.1}], {"cap": 10}, "cap: got 10, expected at least"),
        (
            [{"column": "ACR", "at_least": 0.1}],
            {"certify": {"skip": 10}},
            "skip: got 10, expected 1",
        ),
        (
            [{"column": "ACR", "at_least": 0.1}],
            {"certify": {"split": "train"}},
            "certify.split: got train, but evaluate.split = test",
        ),
        ([{"column": "clean", "at_least": 0.1}], {"examples": "all"}, "examples: got 'all'"),
        ([{"column": "clean", "at_least": 0.1}], {"certfy": {}}, "unknown key 'certfy'"),
        ([{"column": "clean", "at_least": 0.1}], {"certify": {"m": 1}}, "unknown key 'certify.m'"),
        ([{"column": "clean", "not_worse_by": 1}], {"reference": "nobody"}, "nobody"),
    ],
)
def test_mistakes(ask, rules, changes, said):
    done = ask(rules, "strong", **changes)
    assert done.code == 2, done.out
    assert said in done.err
