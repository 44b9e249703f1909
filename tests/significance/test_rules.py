"""One-sided rules: exact p-values, and errors at most at the level, on both sides."""

import numpy as np
import pytest
from scipy import stats

from raybust.significance import mean_at_least, mean_not_worse, share_at_least, share_not_worse

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(("hits", "least"), [(30, 0.4), (50, 0.4), (40, 0.4), (0, 0.1), (100, 0.9)])
def test_shares_are_decided_by_the_exact_binomial_test(hits, least):
    found = share_at_least(np.arange(100) < hits, least, 0.05)
    above = stats.binomtest(hits, 100, least, alternative="greater").pvalue
    below = stats.binomtest(hits, 100, least, alternative="less").pvalue
    assert (found.p_passes, found.p_fails) == pytest.approx((above, below), abs=1e-12)
    expected = "passed" if above <= 0.05 else "failed" if below <= 0.05 else "undecided"
    assert (found.state, found.value, found.reference) == (expected, hits / 100, None)


def test_means_are_decided_by_t_tests():
    a, b = DRAW.normal(0.5, 0.3, 80), DRAW.normal(0.45, 0.3, 80)
    found = mean_at_least(a, 0.4, 0.05)
    assert found.p_passes == pytest.approx(stats.ttest_1samp(a, 0.4, alternative="greater").pvalue)
    assert found.p_fails == pytest.approx(stats.ttest_1samp(a, 0.4, alternative="less").pvalue)
    found = mean_not_worse(a, b, 0.1, 0.05)
    assert found.p_passes == pytest.approx(
        stats.ttest_1samp(a - b, -0.1, alternative="greater").pvalue
    )
    assert found.reference == pytest.approx(b.mean())


def test_equal_values_decide_nothing():
    assert mean_at_least(np.full(20, 0.5), 0.4, 0.05).state == "undecided"
    assert mean_at_least(np.array([0.5]), 0.4, 0.05).state == "undecided"


def of_pairs(total, only_a, only_b):
    """Whether candidate and reference are right, with these shares of disagreement."""
    kinds = DRAW.choice(3, total, p=[only_a, only_b, 1 - only_a - only_b])
    both = DRAW.random(total) < 0.8
    return np.where(kinds == 0, True, np.where(kinds == 1, False, both)), np.where(
        kinds == 0, False, np.where(kinds == 1, True, both)
    )


@pytest.mark.parametrize(
    ("only_a", "only_b", "most"),
    [(0.03, 0.05, 0.065), (0.005, 0.025, 0.065), (0.0, 0.02, 0.08)],
)
def test_at_the_margin_both_errors_are_rare(only_a, only_b, most):
    """The candidate is worse by the margin exactly: passing and failing are both errors. The score
    test is approximate where no image at all speaks for the candidate."""
    states = [share_not_worse(*of_pairs(400, only_a, only_b), 0.02, 0.05).state
              for _ in range(2000)]  # fmt: skip
    assert states.count("passed") <= most * 2000
    assert states.count("failed") <= most * 2000


def test_enough_images_decide():
    better, same = of_pairs(4000, 0.06, 0.02)
    assert share_not_worse(better, same, 0.01, 0.05).state == "passed"
    assert share_not_worse(same, better, 0.01, 0.05).state == "failed"
