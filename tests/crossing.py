"""The exact error probability of a stopping rule, the oracle of schedules and bounds."""

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import binom


def crossing_probability(times, counts, p):
    """Returns the probability that the successes reach a boundary at one of the looks, exactly.

    Dynamic programming over (n, k): the law of k is carried from look to look by convolution with a
    binomial, and what has crossed is removed. Errors are below 1e-11 (FFT, tails of 1e-16 cut).

    Args:
        times: cumulative draws at the looks, rising.
        counts: at each look, the smallest k that crosses.
        p: probability of a success.
    """
    law, first, done, crossed = np.ones(1), 0, 0, 0.0
    for time, count in zip(times, counts, strict=True):
        steps = time - done
        low, high = (int(binom.ppf(q, steps, p)) for q in (1e-16, 1 - 1e-16))
        low, high = max(0, low - 2), min(steps, high + 2)
        law = fftconvolve(law, binom.pmf(np.arange(low, high + 1), steps, p)).clip(min=0.0)
        first, done = first + low, time
        cut = min(max(count - first, 0), len(law))
        crossed += float(law[cut:].sum())
        law = law[:cut]
        if not len(law):
            break
    return crossed
