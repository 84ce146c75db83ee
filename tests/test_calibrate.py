"""Calibration: what it asks, how it searches, what it keeps, and who reads it."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from saved_model import save_tiny
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.calibration import calibrate as calibrating
from rome_mlx.calibration import known, many, search, trials
from rome_mlx.calibration.known import Record, known_records, split
from rome_mlx.calibration.search import CHANGES, CLAMPS, Rounds, candidate_layers
from rome_mlx.calibration.trials import GROUPS, Configuration, measures, score
from rome_mlx.cli import main
from rome_mlx.cli.calibrate import duration
from rome_mlx.editing.layer_choice import layer_to_edit
from rome_mlx.editing.methods import ROME, find_method
from rome_mlx.editing.methods.rome import rank_one_edits
from rome_mlx.errors import RomeError
from rome_mlx.models.decoder import Decoder
from rome_mlx.storage.fact_set import Relation, read_fact_set

TOKENIZER = FakeTokenizer()
BASE = dataclasses.replace(ROME.published, layer=None, **ROME.elsewhere)
PUBLISHED = Configuration(4, ROME.unplaced(ROME.published))
HP = dataclasses.replace(BASE, v_num_grad_steps=2, context_lengths=((1, 3),), ridge=0.01)


def relation(name: str, count: int = 6, kind: str = "town") -> Relation:
    texts = tuple(f"{word} {{}} is in" for word in ("So", "Now", "We say"))
    return Relation(name, kind, "land", texts, "Where?", tuple(
        (f"{name}{i}", "abc"[i % 3]) for i in range(count)))


def record(i: int) -> Record:
    return Record("r", rm.EditRequest("{} is in", f"Town {i}", "x", "y"),
                  (f"Now Town {i} is in",), ((f"Town {i + 50} is in", "y"),))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(cache, tmp_path, monkeypatch):
    """Few small edits, of records that nobody asked a model for; moments of all layers."""
    monkeypatch.setattr(search, "CLAMPS", (1.0,))
    monkeypatch.setattr(search, "CHANGES", ({"v_num_grad_steps": 3},))
    monkeypatch.setattr(calibrating, "_REPORTED", 8)
    monkeypatch.setattr(calibrating, "_SCREENED", 2)
    monkeypatch.setattr(trials, "neutral_tokens", lambda model, tokenizer: [list(range(9))])
    monkeypatch.setattr(calibrating, "starting_points", lambda decoder: tuple(
        Configuration(2, hp) for hp in (HP, dataclasses.replace(HP, clamp_norm_factor=4.0))))
    monkeypatch.setattr(calibrating, "known_records",
                        lambda model, tokenizer, relations, count, *rest: [
                            record(i + 1000 * len(relations)) for i in range(count)])
    (tmp_path / "text.txt").write_text("a cat sat on the mat and the dog did not " * 200)
    return tmp_path / "text.txt"


def calibrated(model, corpus, **options):
    return rm.calibrate(model, TOKENIZER, corpus=[str(corpus)],
                        **{"time": 1e-9, "methods": (), "layers": [1, 2], **options})


def test_a_record_is_of_a_fact_that_two_phrasings_give(monkeypatch):
    def scores(model, tokenizer, pairs):
        """Town 0 is known from all texts, town 1 from one, the others from the last two."""
        def right(text):
            return {"0": True, "1": "Now" in text}.get(text.split()[-3][-1], "So" not in text)

        return [[(0.1, right(text)), (0.1, True)] for text, _ in pairs]

    monkeypatch.setattr(known, "token_scores", scores)
    told = []
    found = known_records(None, None, [relation("m"), relation("n")], 50, 0,
                          lambda *numbers: told.append(numbers))
    subjects = {one.request.subject for one in found}
    assert subjects == {f"{name}{i}" for name in "mn" for i in (0, 2, 3, 4, 5)}
    assert told == [(12, 10)]
    for one in found:
        request = one.request
        i = int(request.subject[1:])
        assert request.target_true == "abc"[i % 3] != request.target_new
        assert request.prompt == ("So {} is in" if i == 0 else "Now {} is in")
        assert len(one.paraphrases) == 2
        assert one.paraphrases[1].endswith(request.subject + " is in")
        assert ". " in one.paraphrases[1]  # something else before it
        assert one.neighbors[0][1] == request.target_true  # the same object first
        assert all(request.subject not in text and answer != request.target_new
                   for text, answer in one.neighbors)
        assert Record.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert found[:4] == known_records(None, None, [relation("m"), relation("n")], 4, 0)


def test_every_other_answer_is_one_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(known, "token_scores",
                        lambda model, tokenizer, pairs: [[(0.1, True)]] * len(pairs))
    other = dataclasses.replace(relation("n"), facts=tuple(
        (f"n{i}", "xyz"[i % 3]) for i in range(6)))
    found = known_records(None, None, [relation("m"), other], 12, 0)
    for one in found[::2]:
        own = "abc" if one.relation == "m" else "xyz"
        assert one.request.target_new in own
    assert any(one.request.target_new not in ("abc" if one.relation == "m" else "xyz")
               for one in found[1::2])


def test_what_chooses_does_not_report():
    relations = read_fact_set()
    first, second = split(relations, 0)
    assert len(first) + len(second) == len(relations) >= 25
    assert not {one.name for one in first} & {one.name for one in second}
    seen = {subject for one in first for subject, _ in one.facts}
    assert not seen & {subject for one in second for subject, _ in one.facts}
    assert sum(len(one.facts) for one in second) > 300
    assert [one.name for one in first] != [one.name for one in split(relations, 1)[0]]


def result(nll, margin, kl=0.0, **others) -> dict:
    """Of one prompt in each group: the right answer's NLL, and how much larger the other's is."""
    return {name: [[nll, nll + margin]] for name in GROUPS} | {"kl": kl} | others


class FakeTrials:
    """Trials whose score is a function of the configuration; counts edits as Trials does."""

    def __init__(self, quality):
        self.quality, self.counts = quality, {}

    @property
    def edits(self):
        return sum(self.counts.values())

    def of(self, configuration, count):
        key = json.dumps(configuration.to_json())
        self.counts[key] = max(count, self.counts.get(key, 0))
        return [result(0.2, self.quality(configuration))] * count


def test_the_search_ends_with_the_best_layer_clamp_and_change():
    def quality(one):
        hp = one.hyperparameters
        return (5 - abs(one.layer - 7) - abs(hp.clamp_norm_factor - 1.4)
                + (hp.kl_factor == 0.25) - (one.hyperparameters.v_rule == "adam"))

    trials, told = FakeTrials(quality), []
    start = Configuration(5, BASE)
    chosen = search.search(trials, [1, 3, 5, 7, 9, 11, 13, 15], start, PUBLISHED, Rounds(),
                           lambda one, results: told.append(one))
    assert chosen == Configuration(7, dataclasses.replace(BASE, clamp_norm_factor=1.4,
                                                          kl_factor=0.25))
    assert trials.edits <= Rounds().edits(8) <= 175 - calibrating._REPORTED
    records = {one: trials.counts[json.dumps(one.to_json())] for one in (start, PUBLISHED)}
    assert records == {start: Rounds().third, PUBLISHED: Rounds().second}
    assert {*records} < {*told}


@pytest.mark.parametrize("best", [Configuration(3, BASE), PUBLISHED])
def test_where_it_started_wins_where_nothing_is_better(best):
    trials = FakeTrials(lambda one: 3.0 if one == best else 1.0)
    assert search.search(trials, [1, 3], Configuration(3, BASE), PUBLISHED, Rounds()) == best


def test_less_time_means_fewer_records_but_never_none():
    full = Rounds()
    assert full.within(1e9, 8) == full
    assert full.within(0, 8) == Rounds(2, 4, 6)
    half = full.within(full.edits(8) / 2, 8)
    assert Rounds(2, 4, 6).edits(8) < half.edits(8) < 0.6 * full.edits(8)


@pytest.mark.parametrize(("kind", "layers"), [("llama", 30), ("gemma3_text", 18)])
def test_layers_to_try_lie_in_the_lower_three_fifths_and_hold_those_screened(kind, layers):
    usable = Decoder(tiny_model(kind, num_hidden_layers=layers)).dense_layers
    chosen = candidate_layers(layers, usable)
    assert chosen == sorted(set(chosen)) and len(chosen) == 8
    assert chosen[0] == 0 and chosen[-1] <= 0.6 * layers
    screened = candidate_layers(layers, usable, [layers - 1, 6])
    assert {6, layers - 1} <= set(screened) and len(screened) <= 8
    assert candidate_layers(layers, usable[4:6], [6]) == [4, 5]  # moments of no others are given


def test_a_narrow_success_an_unsaid_answer_and_a_drift_count_less():
    assert score([result(0.0, 0.0)]) == pytest.approx(60)  # of 1, ½ and ½
    assert score([result(0.0, 9.0)]) == pytest.approx(100, abs=0.1)
    assert 60 < score([result(0.0, 1.0)]) < 85
    assert score([result(np.log(4), 9.0)]) == pytest.approx(50, abs=0.1)  # said once in four times
    assert score([result(0.0, 9.0, kl=0.01)]) == pytest.approx(99, abs=0.1)
    assert score([result(1.0, 2.0), result(1.0, 2.0, neighborhood=[])]) == pytest.approx(
        score([result(1.0, 2.0)]))
    assert score([result(0.0, 9.0, paraphrase=[[9.0, 0.0]])]) < 1
    found = measures([result(np.log(4), 1.0), result(np.log(4), -1.0)], [result(0.0, 1.0)] * 2)
    assert (found["es"], found["ns"], found["ns_unedited"]) == (50, 50, 100)
    assert found["said"] == pytest.approx(25)


@pytest.mark.parametrize("method", ["rome", "r-rome", "p-rome"])
def test_edits_found_side_by_side_are_those_found_one_by_one(method):
    model = tiny_model("llama")
    random = np.random.RandomState(0).randn(200, 48)
    options = {"moments": {1: random.T @ random / 200},
               "context_templates": ["{}", "We know. {}"],
               "hyperparameters": dataclasses.replace(HP, v_num_grad_steps=4)}
    requests = [record(i).request for i in (3, 14, 159)]
    together = rank_one_edits(method, model, TOKENIZER, requests, 1, **options)
    for request, edit in zip(requests, together, strict=True):
        alone = find_method(method).write(model, TOKENIZER, request, 1, **options)
        assert edit.request == request
        np.testing.assert_allclose(edit.left_vector, alone.left_vector, atol=1e-6)
        np.testing.assert_allclose(edit.right_vector, alone.right_vector, rtol=1e-3, atol=1e-4)


def test_what_is_found_is_kept_and_read_by_everything(quick, tmp_path):
    model = tiny_model("llama")
    before = [np.array(x) for _, x in tree_flatten(model.parameters())]
    told = []
    found = calibrated(model, quick, progress=lambda stage, about: told.append(stage))
    for old, (_, now) in zip(before, tree_flatten(model.parameters()), strict=True):
        assert (old == np.array(now)).all()
    assert {"tried", "chosen"} <= set(told)

    preset = found.presets["rome"]
    choice = layer_to_edit(Decoder(model), ROME)
    assert (choice.layer, choice.how) == (preset["layers"][0], "calibration")
    hp = ROME.resolve(None, Decoder(model))
    assert hp.layer == preset["layers"][0] and hp.preset == "found by calibration"
    assert hp.clamp_norm_factor == preset["hyperparameters"]["clamp_norm_factor"]
    assert find_method("r-rome").resolve(None, Decoder(model)).layer == hp.layer
    other = tiny_model("llama", num_hidden_layers=6)
    assert ROME.resolve(None, Decoder(other)).preset != "found by calibration"

    held = found.to_json()
    assert set(held) >= {"model", "identity", "presets", "evidence", "held_out", "edits_tried",
                         "seconds"}
    assert {"method", "layers", "hyperparameters", "records", "es", "ps", "ns",
            "ns_unedited"} <= set(held["evidence"][0])
    assert held["held_out"]["records"] == 8 and len(held["held_out"]["es"]["ci95"]) == 2
    assert held["edits_tried"] == 8 + sum(row["records"] for row in held["evidence"])


def test_methods_of_many_facts_are_calibrated_with_values_found_once(quick, monkeypatch):
    model, found, told = tiny_model("llama"), [], []
    fast = {"v_num_grad_steps": 2, "v_rule": "ball", "v_lr": 0.7}
    monkeypatch.setattr(many, "VALUES", ({**fast, "clamp_norm_factor": 1.5},))
    plain = many.find_values
    monkeypatch.setattr(many, "find_values", lambda *arguments: found.append(
        arguments[4:]) or plain(*arguments))
    calibration = calibrated(model, quick, methods=("memit", "alphaedit"), layers=[2],
                             progress=lambda stage, about: told.append((stage, about)))
    assert calibration.presets.keys() >= {"rome", "memit", "alphaedit"}
    assert {row["hyperparameters"]["threshold"] for row in calibration.evidence
            if row["method"] == "alphaedit"} == {None}  # which would count before the energy
    assert len(set(found)) == len(found) < sum(stage == "tried many" for stage, _ in told)
    rows = [row for row in calibration.evidence if row["method"] == "memit"]
    assert {tuple(row["layers"]) for row in rows} >= {(2,), (0, 1, 2)}
    assert {row["hyperparameters"]["update_weight"] for row in rows} >= {20, 200, 2000, 20000}
    best = max(rows, key=lambda row: row["score"])
    memit = find_method("memit")
    hp = memit.resolve(None, Decoder(model))
    assert list(hp.layers) == best["layers"] == calibration.presets["memit"]["layers"]
    assert hp.update_weight == best["hyperparameters"]["update_weight"]
    assert memit.layers_up_to(hp.layers[-1], hp) == best["layers"]


def test_a_method_that_is_refused_is_listed_with_the_reason(quick, monkeypatch):
    def refused(*arguments, **options):
        raise RomeError("no eigenvalue is small")

    monkeypatch.setattr(many, "find_values", refused)
    found = calibrated(tiny_model("llama"), quick, methods=("emmet",), layers=[2])
    assert found.uncalibrated == {"emmet": "no eigenvalue is small"}
    assert "emmet" not in found.presets


def test_a_calibration_that_was_stopped_goes_on_where_it_was(quick, monkeypatch):
    model, edited, most = tiny_model("llama"), [], [8]  # two configurations of four records
    plain = calibrating.Trials._edited

    def counted(self, configuration, todo):
        if len(edited) == most[0]:
            raise KeyboardInterrupt
        edited.extend((str(configuration), self.bench.records[i]) for i in todo)
        return plain(self, configuration, todo)

    monkeypatch.setattr(calibrating.Trials, "_edited", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(model, quick)
    most[0] = None
    resumed = calibrated(model, quick)
    assert len(set(edited)) == len(edited) == resumed.edits_tried
    monkeypatch.setattr(calibrating.Trials, "_edited", lambda *arguments: 1 / 0)
    again = calibrated(model, quick)
    assert again.evidence == resumed.evidence and again.presets == resumed.presets


def test_a_preset_file_is_handed_on_to_another_copy_and_no_other_model(quick, tmp_path,
                                                                       monkeypatch):
    model = tiny_model("llama")
    path = calibrated(model, quick).save(tmp_path / "preset.json")
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "empty"))
    layer = json.loads(path.read_text())["presets"]["rome"]["layers"][0]
    copy = tiny_model("llama")
    copy.update({"model": {"embed_tokens": {"weight": copy.model.embed_tokens.weight * 1.01}}})
    for given in (path, str(path), json.loads(path.read_text())):
        hp = ROME.resolve(given, Decoder(copy))
        assert hp.layer == layer and hp.preset == "found by calibration"
        choice = layer_to_edit(Decoder(copy), ROME, hyperparameters=given)
        assert (choice.layer, choice.how) == (layer, "given")
    mx.eval(copy.parameters())
    edit = rm.rome(copy, TOKENIZER, record(1).request, hyperparameters=str(path),
                   moments={layer: np.eye(48)}, context_templates=["{}"])
    assert edit.layers == [layer]
    with pytest.raises(RomeError, match="another model, with layers 4, not 6"):
        ROME.resolve(path, Decoder(tiny_model("llama", num_hidden_layers=6)))
    with pytest.raises(RomeError, match="nothing for memit, only for p-rome, r-rome, rome"):
        find_method("memit").resolve(path)
    other = json.loads(path.read_text())
    other["presets"]["rome"]["hyperparameters"]["momentum"] = 0.9
    with pytest.raises(RomeError, match=r"by another version \(unknown hyperparameters momentum"):
        ROME.resolve(other, Decoder(copy))
    for broken in ({"presets": 3}, {"presets": {"rome": {}}, "model": {}}, {"presets": {}}):
        with pytest.raises(RomeError):
            ROME.resolve(broken, Decoder(copy))


def test_a_model_that_knows_too_little_or_carries_edits_is_refused(quick, monkeypatch):
    model = tiny_model("llama")
    edit = rm.rome(model, TOKENIZER, record(1).request, 1, hyperparameters=HP,
                   moments={1: np.eye(48)}, context_templates=["{}"])
    with edit.applied(model), pytest.raises(RomeError, match="carries edits"):
        calibrated(model, quick)
    monkeypatch.setattr(calibrating, "known_records", lambda *arguments: [record(1)] * 5)
    with pytest.raises(RomeError, match="knows 5 of our facts"):
        calibrated(model, quick)


def test_the_command_tells_each_configuration_and_writes_the_preset(quick, tmp_path, monkeypatch,
                                                                    capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    assert main(["calibrate", "--model", "model", "--corpus", "text.txt", "--time", "1s",
                 "--layers", "2", "--methods", "emmet", "--output", "preset.json", "--json",
                 "out.json"]) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines()), said
    assert "layer  clamp  contexts" in said and "facts that chose nothing" in said
    assert "emmet at 2, clamp 0.75 (adam), moment_scale 1000, ridge 0.1:" in said
    assert json.loads((tmp_path / "preset.json").read_text()) == json.loads(
        (tmp_path / "out.json").read_text())
    assert main(["edit", "--model", "model", "--prompt", "{} is in", "--subject", "Oslo",
                 "--target-new", "x", "--no-verify", "--json", "edit.json"]) == 0
    assert json.loads((tmp_path / "edit.json").read_text())["layer_choice"]["how"] == "calibration"
    assert main(["calibrate", "--model", "model", "--corpus", "nothing.txt"]) == 2
    with pytest.raises(SystemExit):
        main(["calibrate", "--methods", "rome,ft"])


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200),
                                               ("1.5h", 5400)])
def test_times_are_read(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3m", "soon", "3d", "1e3"])
def test_other_times_are_refused(text):
    with pytest.raises(Exception, match="no|not a time"):
        duration(text)


def test_the_grid_has_the_published_contexts_and_no_value_twice():
    assert len({*CLAMPS, BASE.clamp_norm_factor}) == len(CLAMPS) + 1
    assert all(dataclasses.replace(BASE, **change) != BASE for change in CHANGES)
