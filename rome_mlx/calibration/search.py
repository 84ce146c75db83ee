"""The search: which layer, which clamp, which contexts and steps, by successive halving.

Every round tries more on few records and hands its best on to the next, which has more records.
What an uncalibrated model gets goes along to the end, so that what is found is never worse, on
the records it was found on; the published numbers at the usual depth join in the second round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .trials import Configuration, Trials, score

CLAMPS = (1.0, 1.4, 3.0)  # beside the first
#: what the best is tried with in place of its own contexts, steps and weight of the KL
CHANGES = ({"context_lengths": ((5, 10), (5, 20))}, {"v_num_grad_steps": 20},
           {"kl_factor": 0.25})


@dataclass(frozen=True)
class Rounds:
    """Records that a configuration is tried on in the first, second and third round."""

    first: int = 4
    second: int = 10
    third: int = 20

    LAYERS, FINALISTS, LAST = 3, 3, 2  # that go on to the next

    def edits(self, layers: int) -> int:
        """How many edits the search makes of so many layers, at most."""
        first = layers + self.LAYERS * len(CLAMPS) + len(CHANGES)
        published, start = self.second, self.third - self.first
        return (self.first * first + (self.second - self.first) * self.FINALISTS + published
                + (self.third - self.second) * self.LAST + start)

    def within(self, edits: float, layers: int) -> "Rounds":
        """As many records as so many edits allow, but no fewer than 2, 4 and 6."""
        share = min(1.0, edits / self.edits(layers))
        return Rounds(max(2, round(self.first * share)), max(4, round(self.second * share)),
                      max(6, round(self.third * share)))


def candidate_layers(layers: int, usable: Sequence[int], first: Sequence[int] = (),
                     count: int = 8) -> list[int]:
    """Layers to try: those of `first` that can be edited, and others over the lower three fifths
    of the depth, `count` in all or fewer. layers: of the model; usable: those that can be
    edited."""
    dense = [i for i in usable if i <= 0.6 * layers] or usable[:1]
    chosen = [layer for layer in first if layer in usable]
    free = max(1, count - len(chosen))
    spread = [dense[round(i * (len(dense) - 1) / max(1, free - 1))] for i in range(free)]
    return sorted({*chosen, *spread})


def search(trials: Trials, layers: Sequence[int], start: Configuration, published: Configuration,
           rounds: Rounds,
           told: Callable[[Configuration, list[dict]], None] = lambda tried, results: None
           ) -> Configuration:
    """The best configuration of ROME. start: what an uncalibrated model gets; its layer is one of
    `layers`. told: called with each and its results when it was tried on more records than
    before."""

    def best(configurations: Sequence[Configuration], records: int) -> list[Configuration]:
        scores = {}
        for configuration in configurations:
            before = trials.edits
            results = trials.of(configuration, records)
            scores[configuration] = score(results)
            if trials.edits > before:
                told(configuration, results)
        return sorted(configurations, key=lambda one: -scores[one])

    tried = [Configuration(layer, start.hyperparameters) for layer in layers]
    leading = best(tried, rounds.first)[:rounds.LAYERS]
    tried += [_changed(one, clamp_norm_factor=clamp) for one in leading for clamp in CLAMPS]
    first = best(tried, rounds.first)[0]
    tried += [_changed(first, **change) for change in CHANGES]
    finalists = best(tried, rounds.first)[:rounds.FINALISTS]
    last = best([*finalists, published], rounds.second)[:rounds.LAST]
    return best([*last, start], rounds.third)[0]


def _changed(configuration: Configuration, **changes) -> Configuration:
    return replace(configuration, hyperparameters=replace(configuration.hyperparameters,
                                                          **changes))
