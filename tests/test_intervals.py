"""Intervals: they cover as often as they say, and never claim to know more than their units do."""

import numpy as np
import pytest

from rome_mlx.intervals import (
    FEW,
    difference_interval,
    ends,
    joined,
    mean_interval,
    resampled,
    widened,
    wilson,
)


@pytest.mark.parametrize("percent, n, expected", [  # Newcombe 1998, table I, method 3
    (100 * 81 / 263, 263, (25.53, 36.62)), (100 * 15 / 148, 148, (6.24, 16.05)),
    (0, 20, (0, 16.11)), (100 * 1 / 29, 29, (0.61, 17.18))])
def test_wilson_gives_the_published_intervals(percent, n, expected):
    assert wilson(percent, n) == pytest.approx(expected, abs=0.006)


def test_shares_of_cases_are_covered_about_as_often_as_is_said():
    random = np.random.RandomState(0)
    for p in (0.5, 0.9, 0.97):
        draws = 100.0 * (random.rand(400, 60) < p)
        intervals = [mean_interval(values, range(60), True) for values in draws]
        assert 0.9 <= np.mean([low <= 100 * p <= high for low, high in intervals]) <= 0.99
        assert all(high - low > 1 for low, high in intervals)


def test_units_are_covered_as_often_as_is_said_and_their_rows_alone_are_not():
    random, groups = np.random.RandomState(0), np.repeat(np.arange(30), 5)
    held = np.zeros(2)
    for _ in range(150):
        values = np.repeat(random.randn(30), 5) + 0.3 * random.randn(150)
        for i, units in enumerate((groups, np.arange(150))):
            low, high = mean_interval(values, units, False)
            held[i] += low <= 0 <= high
    assert 0.88 <= held[0] / 150 <= 0.99 and held[1] / 150 < 0.75


def test_few_is_where_the_bootstrap_begins_to_hold():
    random, held = np.random.RandomState(1), {}
    for count in (3, 5, FEW):
        draws = random.randn(500, count)
        low, high = ends(resampled(draws.T)).T
        held[count] = np.mean((low <= 0) & (high >= 0))
    assert held[3] < 0.8 and held[5] < 0.88 and 0.88 < held[FEW] < 0.95


def test_resampling_draws_a_unit_whole_and_leaves_out_what_is_not_there():
    rows = np.array([[0.0, 1.0], [10.0, np.nan], [100.0, 3.0]])
    samples = resampled(rows, ["a", "a", "b"])
    assert set(samples[:, 0].round(1)) == {5.0, 36.7, 100.0}  # never one row of "a" alone
    assert set(samples[:, 1]) == {1.0, 2.0, 3.0}
    assert samples.tolist() == resampled(rows, ["a", "a", "b"]).tolist()


def test_a_bootstrap_interval_of_a_share_is_wilsons_at_the_boundary_and_itself_elsewhere():
    assert widened(100.0, 100.0, 150) == pytest.approx(wilson(100.0, 150))
    assert widened(0.0, 0.0, 150) == pytest.approx(wilson(0.0, 150))
    assert widened(60.0, 70.0, 150) == [60.0, 70.0]
    assert widened(99.0, 100.0, 20)[0] < 90  # one case lost cannot say more than none lost


def test_paired_shares_have_bonett_and_prices_interval():
    values = np.array([100.0] * 9 + [-100.0] * 2 + [0.0] * 39)  # 9 won, 2 lost, 39 alike
    up, down, z = 10 / 52, 3 / 52, 1.959964
    half = z * np.sqrt((up + down - (up - down) ** 2) / 52)
    assert difference_interval(values, range(50), True) == pytest.approx(
        [100 * (up - down - half), 100 * (up - down + half)], abs=1e-4)
    assert difference_interval(np.zeros(50), range(50), True) == pytest.approx(
        [-100 * z * np.sqrt(2) / 52, 100 * z * np.sqrt(2) / 52], abs=1e-4)
    assert difference_interval(np.zeros(50), np.arange(50) // 5, True) == pytest.approx(
        [-100 * z * np.sqrt(2) / 12, 100 * z * np.sqrt(2) / 12], abs=1e-4)


def test_one_unit_has_no_interval():
    assert mean_interval(np.array([1.0, 2.0]), ["a", "a"], False) is None
    assert difference_interval(np.array([1.0, 2.0]), ["a", "a"], True) is None


def test_rows_that_any_grouping_joins_are_one_unit():
    assert joined([1, 1, 2, 3], ["a", "b", "b", "c"]) == [0, 0, 0, 3]
    assert joined(range(4), range(4)) == [0, 1, 2, 3]
    assert joined([0, 0, 1, 1, 2], [9, 8, 8, 7, 7]) == [0] * 5
