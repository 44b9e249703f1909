"""All variants of logs in circulation, with published ones as an oracle."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, norm

from raybust.errors import RequestError
from raybust.reporting import (
    abstention,
    acr,
    budget,
    certified_accuracy,
    on_ladder,
    read_log,
    votes,
)
from raybust.reporting.logs import norm_in
from raybust.stages.certified import bare_path

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "certification_logs"
HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"

ORACLE = {
    "cohen2019_cifar10_resnet110_train0.12_test0.12": (0.12, 0.001, 0.2701, 19, [81.4, 58.6, 0]),
    "cohen2019_cifar10_resnet110_train0.25_test0.25": (
        0.25,
        0.01,
        0.4289,
        43,
        [74.8, 60.0, 42.8, 26.6, 0],
    ),
    "cohen2019_imagenet_resnet50_train0.50_test0.50": (
        0.5,
        0.01,
        0.7325,
        82,
        [57.2, 51.8, 45.8, 42.4, 37.2, 33.0, 28.6, 22.0],
    ),
}


@pytest.fixture(params=ORACLE)
def published(request):
    path = PUBLISHED / f"{request.param}.tsv"
    if not path.exists():
        pytest.skip(f"{path} is not local")
    return read_log(path), ORACLE[request.param]


def write(tmp_path, text):
    path = tmp_path / "log.tsv"
    path.write_text(text)
    return path


def test_published_figures(published):
    log, (sigma, _, value, abstained, accuracies) = published
    assert (len(log), log.sigma, log.warnings) == (500, sigma, ())
    assert round(acr(log).value, 4) == value
    assert round(abstention(log) * 500) == abstained
    radii = 0.25 * np.arange(len(accuracies))
    assert (100 * certified_accuracy(log, radii)).round(1).tolist() == accuracies


def test_every_published_radius_is_derived_again(published):
    log, (sigma, alpha, *_) = published
    found = budget(log)
    assert (found.n, found.alpha, found.sigma, found.share) == (100_000, alpha, sigma, 1.0)
    assert found.inferred
    assert on_ladder(log, 100_000, alpha, sigma).all()
    other = 0.001 if alpha == 0.01 else 0.01
    assert on_ladder(log, 100_000, other, sigma).mean() < 0.8


def test_acr_never_without_what_it_depends_on(published):
    log, (_, alpha, value, *_) = published
    skip = 100 if "imagenet" in log.name else 20
    text = str(acr(log))
    assert text.startswith(f"{value:.4f} [")
    assert text.endswith(f"(n = 100,000, alpha = {alpha:g}, inferred; 500 examples, skip {skip})")


def test_bootstrap_interval_is_that_of_the_standard_error(published):
    log, _ = published
    values, found = log.radius * log.correct, acr(log)
    error = values.std() / np.sqrt(500)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize("certain", [(4, 1), (20, 0.5)], ids=["spread", "near certain"])
@pytest.mark.parametrize("down", [False, True], ids=["nearest", "down"])
@pytest.mark.parametrize("n", [200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000])
def test_an_inferred_n_is_the_true_one_or_none(tmp_path, n, down, certain):
    """By Clopper and Pearson's bound from scipy, written with three digits, as logs are."""
    drawn = np.random.default_rng(n)
    counts = drawn.binomial(n, drawn.beta(*certain, 400))
    lines = [HEAD]
    for index, count in enumerate(counts):
        bound = beta.ppf(0.001, count, n - count + 1) if count else 0.0
        if bound <= 0.5:
            lines.append(f"{index}\t1\t-1\t0.0\t0\t1\n")
            continue
        radius = 0.25 * norm.ppf(bound)
        unit = 10 ** (math.floor(math.log10(radius)) - 2)
        shown = f"{math.floor(radius / unit) * unit if down else radius:.3}"
        lines.append(f"{index}\t1\t1\t{shown}\t1\t1\n")
    path = tmp_path / "theirs_sigma_0.25.tsv"
    path.write_text("".join(lines))
    found = budget(read_log(path))
    assert found is None or found.n == n
    if n in (1000, 100_000) and (n == 1000 or certain[0] == 20):
        assert found is not None, "enough evidence"


def test_the_norm_of_a_log_without_a_header_is_in_its_name(tmp_path):
    norms = {"mine_linf_sigma_0.25": "linf", "l1-uniform": "l1", "model1": "l2", "plain": "l2"}
    for name, norm_of in norms.items():
        path = tmp_path / f"{name}.tsv"
        path.write_text(HEAD + "0\t1\t1\t0.5\t1\t1\n")
        assert read_log(path).norm == norm_of


def test_the_sigma_of_a_name_is_not_the_number_of_test_images(tmp_path):
    path = tmp_path / "cifar_sigma_0.5_test_500.tsv"
    path.write_text(HEAD + "0\t1\t1\t0.5\t1\t1\n")
    assert read_log(path).sigma == 0.5


def test_votes_are_recovered(published):
    log, _ = published
    shares = votes(log)
    assert shares.min() == 0.5
    assert (np.diff(shares[np.argsort(log.radius)]) >= 0).all()
    assert shares[log.radius == log.radius.max()].min() == 1.0


def test_both_time_formats(tmp_path):
    log = read_log(write(tmp_path, HEAD + "0\t1\t1\t0.5\t1\t0:01:02.5\n1\t1\t1\t0.5\t1\t15.4\n"))
    assert log.time.tolist() == [62.5, 15.4]


@pytest.mark.parametrize("text", ["", HEAD])
def test_empty_files(tmp_path, text):
    log = read_log(write(tmp_path, text))
    assert len(log) == 0
    assert log.warnings == ("has no rows",)
    assert np.isnan(acr(log).value)
    assert np.isnan(certified_accuracy(log, [0.0])).all()
    assert budget(log) is None


@pytest.mark.parametrize("torn", ["2\t1", "2\t1\t1\t0.5\t1\t", "2\t1\t1\t0."])
def test_truncated_files(tmp_path, torn):
    log = read_log(write(tmp_path, HEAD + "0\t1\t1\t0.5\t1\t3.0\n1\t1\t-1\t0.0\t0\t3.0\n" + torn))
    assert log.idx.tolist() == [0, 1]
    assert log.warnings == ("its last line is torn and was left out",)


def test_a_running_total_in_correct_is_recomputed(tmp_path):
    rows = "0\t1\t1\t0.5\t1\t3\n1\t1\t2\t0.5\t1\t3\n2\t1\t1\t0.1\t2\t3\n3\t1\t-1\t0.0\t2\t3\n"
    log = read_log(write(tmp_path, HEAD + rows))
    assert log.correct.tolist() == [True, False, True, False]
    assert "running total" in log.warnings[0]
    assert "3 of 4 rows" in log.warnings[0]
    assert certified_accuracy(log, [0.0, 0.25]).tolist() == [0.5, 0.25]


def test_further_columns_in_any_order(tmp_path):
    head = "idx\tlabel\tpredict\tpA\tradius\tsamplesize\tcorrect\ttime\ttime_forward\n"
    log = read_log(write(tmp_path, head + "7\t1\t1\t0.9\t0.3204\t100\t1\t2.0\t1.0\n"))
    assert (log.idx[0], log.radius[0], log.rounding[0]) == (7, 0.3204, pytest.approx(5e-5))


@pytest.mark.parametrize(
    "text",
    ["idx\tlabel\tpredict\tcorrect\ttime\n0\t1\t1\t1\t3\n", "0.0 0.7\n0.25 0.6\n"],
)
def test_prediction_logs_and_curves_are_refused(tmp_path, text):
    with pytest.raises(RequestError, match="is not a certification log: it lacks the columns"):
        read_log(write(tmp_path, text))


def test_a_broken_row_in_the_middle_and_a_missing_file(tmp_path):
    with pytest.raises(RequestError, match="not a row of a log"):
        read_log(write(tmp_path, HEAD + "0\tx\n1\t1\t1\t0.5\t1\t3\n"))
    with pytest.raises(RequestError, match="cannot be read"):
        read_log(tmp_path / "none.tsv")


def test_sigma_comes_from_the_path(tmp_path):
    (tmp_path / "noise_0.25" / "test").mkdir(parents=True)
    path = tmp_path / "noise_0.25" / "test" / "sigma_0.50"
    path.write_text(HEAD + "0\t1\t1\t0.5\t1\t3\n")
    assert read_log(path).sigma == 0.5
    assert read_log(write(tmp_path, HEAD + "0\t1\t1\t0.5\t1\t3\n"), name="mine").name == "mine"


def test_a_header_of_another_version_is_told(tmp_path):
    """Rows are held against the header; one that cannot be read holds nothing."""
    path = tmp_path / "log.tsv"
    path.write_text(
        '# {"sigma": 0.5, "n": 100, "invented": 1}\n'
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01.000000\n"
    )
    assert any("header of another raybust version" in text for text in read_log(path).warnings)


@pytest.mark.parametrize("p", ["l2", "linf", "l1", "l0"])
@pytest.mark.parametrize(
    "name", ["mine", "try_l1b", "vs_linf", "test_gaussian_l2_n100", "l0-or-l2"]
)
def test_six_columns_keep_their_norm_under_any_name(name, p):
    path = bare_path(Path("certified") / f"{name}.tsv", p)
    assert norm_in(path.stem) == p
    again = bare_path(path, p)
    assert again.name == path.name, "a name that states its norm stays"
