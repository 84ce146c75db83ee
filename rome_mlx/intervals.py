"""95 % intervals of means: the bootstrap, Wilson's for shares, and both for paired differences.

Rows that are not independent, such as cases that share one edited model, form a unit: units are
resampled, not rows, and one unit alone has no interval. With few units the bootstrap's intervals
are too narrow: `FEW` says from how many on they are not.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.stats import norm

DRAWS = 2000
#: with fewer units, a bootstrap interval of a normal mean holds it in less than 90 % of samples
FEW = 10
_Z = float(norm.ppf(0.975))


def resampled(rows: np.ndarray, units: Sequence | None = None) -> np.ndarray:
    """Means over rows of bootstrap samples, seeded.

    Args:
        rows: (rows, ...); NaN where a row has no value.
        units: a label per row; rows with one label are drawn together (default: each alone).
    Returns:
        (DRAWS, ...), NaN where a draw holds no value.
    """
    rows = np.asarray(rows, np.float64)
    index = _index(np.arange(len(rows)) if units is None else units)
    count = index.max() + 1
    there = ~np.isnan(rows)
    sums, numbers = np.zeros((2, count, *rows.shape[1:]))
    np.add.at(sums, index, np.where(there, rows, 0))
    np.add.at(numbers, index, there)
    draws = _draws(count)
    with np.errstate(invalid="ignore"):
        return np.tensordot(draws, sums, axes=1) / np.tensordot(draws, numbers, axes=1)


def ends(samples: np.ndarray) -> np.ndarray:
    """The 2.5 and 97.5 percentiles of samples (DRAWS, ...): (..., 2)."""
    return np.moveaxis(np.nanpercentile(samples, [2.5, 97.5], axis=0), 0, -1)


def wilson(percent: float, n: int) -> list[float]:
    """Wilson's interval, in percent, of a share of n independent yes or no.

    It has a width at 0 and at 100 %, and of the usual intervals its coverage is closest to 95 %
    on average; Clopper and Pearson's never covers less, and is wider than it says (Brown, Cai and
    DasGupta 2001, "Interval Estimation for a Binomial Proportion").
    """
    p, z2 = percent / 100, _Z * _Z
    middle = p + z2 / (2 * n)
    half = _Z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (float(100 * (middle + sign * half) / (1 + z2 / n)) for sign in (-1, 1))
    return [min(max(low, 0.0), percent), max(min(high, 100.0), percent)]


def mean_interval(values: np.ndarray, units: Sequence, share: bool) -> list[float] | None:
    """The interval of a mean of values (rows,); None where there is one unit.

    share: values are percent of a case's prompts. Where each case is yes or no (0 or 100) and a
    unit by itself it is Wilson's; else the bootstrap's, widened as in `widened`.
    """
    count = len(set(units))
    if count < 2:
        return None
    if share and count == len(values) and _yes_or_no(values):
        return wilson(float(np.mean(values)), count)
    low, high = ends(resampled(values, units)).tolist()
    return widened(low, high, count) if share else [low, high]


def widened(low: float, high: float, n: int) -> list[float]:
    """A bootstrap interval of a share in percent that claims no more than n units can.

    n units all at 100 leave open, by Wilson's interval, that the share is as low as
    100 n / (n + z²), and values below 100 cannot exclude more; the same from 0 upwards. Where all
    units are alike in between, the interval is Wilson's. A mean over a case's prompts varies at
    most as much as a yes or no, so both are on the safe side.
    """
    if low == high:
        return wilson(low, n)
    open_ = wilson(0.0, n)[1]
    return [min(low, 100 - open_), max(high, open_)]


def difference_interval(values: np.ndarray, units: Sequence, share: bool) -> list[float] | None:
    """The interval of a mean of paired differences (rows,); None where there is one unit.

    share: differences of percent. Where each is −100, 0 or 100 and a unit by itself it is Bonett
    and Price's (2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data"); else the bootstrap's, or `between_ties` where nothing differs.
    """
    count = len(set(units))
    if count < 2:
        return None
    if share and count == len(values) and _yes_or_no(np.abs(values)):
        up, down = ((np.sum(values == sign * 100) + 1) / (count + 2) for sign in (1, -1))
        half = _Z * np.sqrt((up + down - (up - down) ** 2) / (count + 2))
        return [float(max(-100.0, 100 * (up - down - half))),
                float(min(100.0, 100 * (up - down + half)))]
    low, high = ends(resampled(values, units)).tolist()
    return between_ties(low, high, count) if share else [low, high]


def between_ties(low: float, high: float, n: int) -> list[float]:
    """A bootstrap interval of a difference of percent; one without a width, since none of n units
    differs, becomes what Bonett and Price's is then."""
    half = float(100 * _Z * np.sqrt(2) / (n + 2))
    return [-half, half] if low == high == 0 else [low, high]


def joined(*groupings: Sequence) -> list[int]:
    """A label per row: rows that any of the groupings puts together have the same.

        joined([1, 1, 2, 3], ["a", "b", "b", "c"])     # [0, 0, 0, 3]
    """
    indices = [_index(grouping) for grouping in groupings]
    labels = np.arange(len(indices[0]))
    while True:
        before = labels
        for index in indices:
            lowest = np.full(index.max() + 1, len(labels))
            np.minimum.at(lowest, index, labels)
            labels = lowest[index]
        if (labels == before).all():
            return labels.tolist()


@lru_cache(maxsize=2)
def _draws(count: int) -> np.ndarray:
    """How often each of so many units is in each sample: (DRAWS, count)."""
    return np.random.RandomState(0).multinomial(count, np.full(count, 1 / count),
                                                DRAWS).astype(np.float64)


def _index(labels: Sequence) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)


def _yes_or_no(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 100)).all())
