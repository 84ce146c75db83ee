"""The methods of many facts: which layers, how far, and how hard, for memit, emmet and alphaedit.

One coordinate after the other, each try one edit of all records: how values are found, over which
layers they are spread, then what is the method's own. Values hang on the last layer and on how they
are found; all three methods share them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..editing.hyperparameters import ValueHyperparameters, depth_layer
from ..editing.methods import find_method
from ..editing.spread import find_values
from ..errors import RomeError
from ..models.decoder import Decoder
from ..storage.run_store import Item
from .trials import Bench, Tried, name_of, score, without_layers

METHODS = ("memit", "emmet", "alphaedit")
#: how values are found, beside as published
VALUES = ({"v_rule": "ball", "v_lr": 0.7, "v_num_grad_steps": 10},
          {"v_rule": "ball", "v_lr": 0.7, "v_num_grad_steps": 10, "clamp_norm_factor": 1.5})
#: layers that take a share
SPANS = {"memit": (3, 1, 5), "emmet": (1, 3), "alphaedit": (3, 1, 5)}
#: of the method's own; the first are tried with everything
OWN = {"memit": ({"update_weight": 20.0}, {"update_weight": 200.0}, {"update_weight": 2000.0},
                 {"update_weight": 20000.0}),
       "emmet": ({"moment_scale": 1000.0}, {"moment_scale": 1.0}, {"ridge": 0.01}),
       "alphaedit": ({"energy": 0.05, "regularization": 0.1},
                     {"energy": 0.05, "regularization": 1.0},
                     {"energy": 0.02, "regularization": 0.1}, {"energy": 0.1,
                                                               "regularization": 0.1})}


class ManyConfiguration:
    """One way to write many facts: a method, its layers and its hyperparameters."""

    def __init__(self, method: str, layers: Sequence[int], hp: ValueHyperparameters):
        self.method, self.layers, self.hyperparameters = method, list(layers), hp

    def to_json(self) -> dict:
        return {"method": self.method, "layers": self.layers,
                "hyperparameters": without_layers(self.hyperparameters)}


class ManyTrials(Tried):
    """What every configuration gave on the records of a bench, all written by one edit."""

    def __init__(self, bench: Bench, moments, seed: int = 0):
        super().__init__(bench, moments, seed)
        self.values: dict[tuple, list] = {}

    def of(self, configuration: ManyConfiguration) -> list[dict]:
        """{group: [[NLL, NLL]]} and "kl" of every record."""
        name, about = name_of(configuration), configuration.to_json()
        records = self.bench.records
        items = [Item(f"{name}_{name_of(record)}", {
            **about, "together": len(records), "record": record.to_json()}) for record in records]
        results = self.bench.run.map(items, lambda group, todo: self._edited(configuration, todo),
                                     together=len(items))
        self.tried[name] = configuration, results
        return results

    def _edited(self, configuration: ManyConfiguration, todo: list[int]) -> dict[int, dict]:
        bench, hp = self.bench, configuration.hyperparameters
        model, tokenizer = bench.model, bench.tokenizer
        method = find_method(configuration.method)
        requests = [record.request for record in bench.records]
        templates = method.kept_templates(model, tokenizer, self.seed, hp)
        key = (configuration.layers[-1],
               *(getattr(hp, name) for name in ValueHyperparameters.__dataclass_fields__
                 if name != "preset"))
        if key not in self.values:
            self.values[key] = find_values(Decoder(model), tokenizer, requests, templates,
                                           configuration.layers[-1], hp)
        edit = method.write(model, tokenizer, requests, configuration.layers,
                            moments=self.moments, context_templates=templates,
                            hyperparameters=hp, seed=self.seed, values=self.values[key])
        with edit.applied(model):
            moved = bench.drift()
            return {i: bench.answers(bench.records[i]) | {"kl": moved} for i in todo}


def search_many(trials: ManyTrials, name: str, layer: int, available: Sequence[int],
                told: Callable[[ManyConfiguration, list[dict]], None] = lambda tried, results: None
                ) -> ManyConfiguration:
    """The best configuration of a method whose last layer is `layer`, or the published one at the
    usual depth. available: layers that there are moments of. told: called with each that was
    tried. Raises RomeError where none can be tried."""
    method, decoder = find_method(name), Decoder(trials.bench.model)
    scores: list[tuple[float, ManyConfiguration]] = []
    failed: list[RomeError] = []

    def tried(layers: Sequence[int], hp: ValueHyperparameters) -> None:
        configuration = ManyConfiguration(name, layers, hp)
        try:
            results = trials.of(configuration)
        except RomeError as error:  # such as no null space
            failed.append(error)
            return
        scores.append((score(results), configuration))
        told(configuration, results)

    def best() -> ManyConfiguration:
        if not scores:
            raise failed[0]
        return max(scores, key=lambda pair: pair[0])[1]

    uncalibrated = method.uncalibrated(decoder)
    first = replace(uncalibrated, **OWN[name][0])
    for hp in (first, *(replace(first, **values) for values in VALUES)):
        tried(_span(available, layer, SPANS[name][0]), hp)
    leading = best().hyperparameters
    for layers in {tuple(_span(available, layer, count)) for count in SPANS[name]}:
        if list(layers) != best().layers:
            tried(layers, leading)
    leading = best()
    for own in OWN[name][1:]:
        tried(leading.layers, replace(leading.hyperparameters, **own))
    layers = method.layers_up_to(depth_layer(decoder), uncalibrated)
    if set(layers) <= set(available):
        tried(layers, uncalibrated)
    return best()


def _span(available: Sequence[int], last: int, count: int) -> list[int]:
    """The last `count` of the layers up to `last`, those that follow one another."""
    layers = [last]
    while len(layers) < count and layers[0] - 1 in available:
        layers.insert(0, layers[0] - 1)
    return layers
