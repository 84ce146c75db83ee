"""Means over cases with 95 % intervals, and the paper's score S."""

import numpy as np
from scipy.stats import hmean

from .metrics import SCORE

_DRAWS = 2000
#: what a case's file may hold beside the benchmark's own scores
_OTHERS = ("ngram_entropy", "reference_score", "kl_drift")


def summary_of(results: list[dict], about: dict, benchmark) -> dict:
    """The summary of cases' files: edited, "unedited", and the share of the ceiling.

    benchmark: the module whose case_measures and SCORE they are by.
    """
    edited, unedited = (
        summarize([benchmark.case_measures(r[state], r["pre"])
                   | {name: r[state][name] for name in _OTHERS if name in r[state]}
                   for r in results], benchmark.SCORE) for state in ("post", "pre"))
    return {**about, "cases": len(results), **edited, "unedited": unedited,
            "ceiling_share": (ceiling_share(edited, unedited, benchmark.SCORE)
                              if "score" in edited else None)}


def summarize(cases: list[dict], score: tuple[str, ...] = SCORE) -> dict[str, dict]:
    """{measure: {"mean", "ci95": [low, high]}} of [{measure: value}], bootstrapped over cases.

    score: what S is the harmonic mean of: ES, PS and NS (ROME paper, section 3.3). The draws are
    seeded.
    """
    names = sorted({name for case in cases for name in case})
    table = np.array([[case.get(name, np.nan) for name in names] for case in cases])
    draws = np.random.RandomState(0).randint(0, len(cases), (_DRAWS, len(cases)))
    samples = np.stack([_means(table[draw]) for draw in draws])
    out = {name: _measure(mean, column)
           for name, mean, column in zip(names, _means(table), samples.T, strict=True)}
    if set(score) <= set(names):
        index = [names.index(name) for name in score]
        out["score"] = _measure(_score(_means(table)[index]),
                                np.array([_score(s) for s in samples[:, index]]))
    return out


def ceiling_share(edited: dict, unedited: dict, score: tuple[str, ...] = SCORE) -> float | None:
    """S in percent of the ceiling: the S of an edit that writes every fact and leaves every
    neighbor as it was. A yardstick, not a bound: an edit can raise NS. None where it is 0."""
    best = _score(np.array([100.0, 100.0, unedited[score[-1]]["mean"]]))
    return 100 * edited["score"]["mean"] / best if best else None


def _means(rows: np.ndarray) -> np.ndarray:
    counts = np.maximum(1, (~np.isnan(rows)).sum(0))
    return np.where(np.isnan(rows).all(0), np.nan, np.nansum(rows, 0) / counts)


def _score(parts: np.ndarray) -> float:
    if np.isnan(parts).any():
        return float("nan")
    return float(hmean(parts)) if (parts > 0).all() else 0.0


def _measure(mean, samples) -> dict:
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return {"mean": float(mean), "ci95": [float(low), float(high)]}
