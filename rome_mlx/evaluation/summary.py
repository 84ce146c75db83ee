"""Means over cases with 95 % intervals, the paper's score S, and two runs' paired differences."""

from collections.abc import Callable, Sequence

import numpy as np

from ..intervals import (
    between_ties,
    difference_interval,
    ends,
    joined,
    mean_interval,
    resampled,
    widened,
)
from .further import further_measures
from .generation import ngram_entropy
from .measures import measure
from .metrics import CHANGES, SCORE

#: what a case's file may hold beside the benchmark's own scores
_OTHERS = ("reference_score", "kl_drift")


def summary_of(results: list[dict], about: dict, benchmark) -> dict:
    """The summary of cases' files: edited, "unedited", and S beside the unedited model's.

    "groups": how many groups of cases were edited together; the intervals resample those, and
    with one group there are none. benchmark: the module whose case_measures and SCORE they are by.
    """
    groups = groups_of(results)
    edited = summarize(measures_of(results, "post", benchmark), benchmark.SCORE, groups)
    unedited = summarize(measures_of(results, "pre", benchmark), benchmark.SCORE)
    return {**about, "cases": len(results), "groups": len(set(groups)), **edited,
            "unedited": unedited,
            "ceiling_share": (ceiling_share(edited, unedited, benchmark.SCORE)
                              if "score" in edited else None)}


def groups_of(results: list[dict]) -> list[int]:
    """A label per case: the least id of those that were edited together with it."""
    return [min(r["group"]) for r in results]


def measures_of(results: list[dict], state: str, benchmark) -> list[dict[str, float]]:
    """{measure: value} of each case's file; state: "post", with the edit, or "pre".

    GE is taken from the texts, not from what an earlier version wrote beside them. What tells of
    a change is left out where there is none.
    """
    cases = []
    for result in results:
        scores = result[state]
        case = benchmark.case_measures(scores, result["pre"])
        if scores == result["pre"]:
            case = {name: value for name, value in case.items() if name not in CHANGES}
        if "texts" in scores:
            case["ngram_entropy"] = ngram_entropy(scores["texts"])
        cases.append(case | {name: scores[name] for name in _OTHERS if name in scores}
                     | further_measures(result, state))
    return cases


def summarize(cases: list[dict], score: tuple[str, ...] = SCORE,
              groups: Sequence | None = None) -> dict[str, dict]:
    """The mean of every measure over cases [{measure: value}].

    Args:
        score: what S is the harmonic mean of: ES, PS and NS (ROME paper, section 3.3).
        groups: a label per case; cases of one group share an edited model and are resampled
            together (default: each alone).
    Returns:
        {measure: {"mean", "ci95": [low, high] or None for one group, "n": cases it is over}}.
    """
    groups = range(len(cases)) if groups is None else groups
    out = _means(cases, groups, mean_interval)
    if set(score) <= set(out):
        out["score"] = _score_measure(_table(cases, score), groups, _score, widened)
    return out


def differences(base: list[dict], other: list[dict], score: tuple[str, ...],
                base_groups: Sequence, other_groups: Sequence) -> dict[str, dict]:
    """The mean of other − base of every measure, over cases [{measure: value}] in one order.

    Returns {measure: {"mean", "ci95", "n": cases that have it in both}}; cases that share an
    edited model in either run are resampled together.
    """
    units = joined(base_groups, other_groups)
    pairs = [{name: b[name] - a[name] for name in a.keys() & b.keys()}
             for a, b in zip(base, other, strict=True)]
    out = _means(pairs, units, difference_interval)
    if set(score) <= set(out):
        tables = np.stack([_table(base, score), _table(other, score)], axis=1)  # (cases, 2, parts)
        tables[np.isnan(tables).any(axis=1, keepdims=True).repeat(2, axis=1)] = np.nan
        out["score"] = _score_measure(
            tables, units, lambda means: np.subtract(*_score(means).T[::-1]), between_ties)
    return out


def ceiling_share(edited: dict, unedited: dict, score: tuple[str, ...] = SCORE) -> float | None:
    """S in percent of the ceiling: the S of an edit that writes every fact and leaves every
    neighbor as it was. A yardstick, not a bound: an edit can raise NS. None where it is 0."""
    best = _score(np.array([100.0, 100.0, unedited[score[-1]]["mean"]]))
    return 100 * edited["score"]["mean"] / best if best else None


def _means(cases: list[dict], groups: Sequence, interval: Callable) -> dict[str, dict]:
    """{measure: {"mean", "ci95", "n"}} of the cases that have it."""
    out = {}
    for name in sorted({name for case in cases for name in case}):
        have = [i for i, case in enumerate(cases) if name in case]
        values = np.array([cases[i][name] for i in have])
        out[name] = {"mean": float(values.mean()), "n": len(values),
                     "ci95": interval(values, [groups[i] for i in have], measure(name).share)}
    return out


def _score_measure(table: np.ndarray, groups: Sequence, statistic: Callable,
                   honest: Callable) -> dict:
    """A statistic of a table's column means, with the interval of the same draws for all columns.

    table: (cases, ...), NaN where a case lacks a part; honest: (low, high, groups) -> [low, high].
    """
    have = ~np.isnan(table).reshape(len(table), -1).all(axis=1)
    table, groups = table[have], [g for g, there in zip(groups, have, strict=True) if there]
    count, interval = len(set(groups)), None
    if count > 1:
        interval = honest(*ends(statistic(resampled(table, groups))).tolist(), count)
    return {"mean": float(statistic(np.nanmean(table, axis=0))), "ci95": interval,
            "n": len(table)}


def _table(cases: list[dict], names: Sequence[str]) -> np.ndarray:
    return np.array([[case.get(name, np.nan) for name in names] for case in cases])


def _score(parts: np.ndarray) -> np.ndarray:
    """The harmonic mean over the last axis; 0 where a part is."""
    with np.errstate(divide="ignore"):
        return parts.shape[-1] / (1 / parts).sum(axis=-1)
