"""Which layer decides: one rule for a fact and for a model's averages.

The rule reads MLP outputs restored at the subject's last token, in a window in proportion to depth.
On small models layer 0, which spells the token out of its embedding, is part of every low window
and dominates: all windows that hold it say the same, so they are left out. Among the others one
layer's effect is noisy and the rise around it is not: the effect is smoothed with its neighbors'
before the peak is taken.

On the default model (window 6, 197 known facts, 1,000 random splits of them in halves) the two
halves name layers at most one apart in 92 % of splits, 6 or 7 nearly always. Without smoothing it
is 87 %; with the peak of hidden states, broad from layer 2 to 20, 62 %. benchmarks/decision.py
measures it. The rule was chosen on 57 of the facts.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decision:
    """layer: the peak; effect: its smoothed indirect effect; clear: whether it stands out; reason:
    why."""

    layer: int
    effect: float
    clear: bool
    reason: str


def decide(effect: np.ndarray, total: float, first: int = 1) -> Decision:
    """The layer with the largest indirect effect, smoothed over neighbors as 1 : 2 : 1.

    effect: (layers,) indirect effects at the subject's last token; total: the total effect, clean
    minus corrupted; first: the lowest layer that may be chosen, above every window that holds
    layer 0. Lower layers are no neighbors either: at the ends a layer is its own neighbor.
    Clear when the total effect is at least 0.05, the peak recovers a tenth of it, and the peak
    is at least twice the median of the candidates' effects.
    """
    effect = np.asarray(effect, np.float64)
    first = min(first, len(effect) - 1)
    around = np.pad(effect[first:], 1, mode="edge")
    candidates = (around[:-2] + 2 * around[1:-1] + around[2:]) / 4
    layer = first + int(np.argmax(candidates))
    peak, typical = float(candidates.max()), float(np.median(effect[first:]))
    if total < 0.05:
        clear, why = False, f"corrupting the subject costs only {total:.3f} of probability"
    elif peak < 0.1 * total:
        clear, why = False, f"the peak, {peak:.3f}, recovers less than a tenth of {total:.3f}"
    elif peak < 2 * typical:
        clear, why = False, f"the peak, {peak:.3f}, is under twice the median, {typical:.3f}"
    else:
        clear, why = True, f"the peak, {peak:.3f}, recovers {100 * peak / total:.0f} % of the fact"
    return Decision(layer, peak, clear, why)


def first_candidate(kind: str, window: int) -> int:
    """The lowest layer whose cell says nothing of layer 0 alone."""
    return 1 if kind == "hidden" else window // 2 + 1


def scaled_window(layers: int) -> int:
    """The paper's window, 10 of GPT-2 XL's 48 layers, in proportion to depth: even, 2 or more."""
    return max(2, 2 * round(5 * layers / 48))
