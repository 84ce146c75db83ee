"""Which layer decides, and whether that is clear."""

import pytest

from rome_mlx.tracing.decision import decide, first_candidate


def test_the_largest_smoothed_effect_among_the_candidates_decides():
    effect = [0.5, 0.0, 0.03, 0.2, 0.01, 0.0, 0.0]
    decision = decide(effect, 0.6)
    assert (decision.layer, decision.effect, decision.clear) == (3, pytest.approx(0.11), True)
    assert decide(effect, 0.6, first=4).layer == 4 and decide(effect, 0.6, first=99).layer == 6
    assert decide(effect, 0.6, first=0).layer == 0


def test_one_layer_that_stands_alone_gives_way_to_a_broad_rise():
    assert decide([0, 0.02, 0.11, 0.02, 0.08, 0.1, 0.08, 0], 0.6).layer == 5


@pytest.mark.parametrize("effect, total, why", [
    ([0, 0.01, 0.03, 0.01], 0.04, "costs only 0.040"),
    ([0, 0.01, 0.05, 0.01], 0.6, "less than a tenth"),
    ([0, 0.2, 0.22, 0.2], 0.6, "under twice the median"),
])
def test_a_decision_that_does_not_stand_out_is_not_clear(effect, total, why):
    decision = decide(effect, total)
    assert decision.layer == 2 and not decision.clear and why in decision.reason


def test_windows_that_hold_layer_0_are_no_candidates():
    assert first_candidate("hidden", 10) == 1
    for window in (1, 2, 3, 10):
        first = first_candidate("mlp", window)
        assert first - window // 2 > 0 >= first - 1 - window // 2
