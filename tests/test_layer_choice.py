"""One decisive layer and one layer to edit, whichever command is asked."""

import json

import pytest
from fakes import FakeTokenizer
from saved_model import save_tiny
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing import hyperparameters
from rome_mlx.editing.layer_choice import ENOUGH_FACTS, keep_profile, layer_to_edit, stored_profile
from rome_mlx.editing.methods import METHODS, ROME
from rome_mlx.models.decoder import Decoder
from rome_mlx.tracing.average import average_effects

FACT = ["--prompt", "{} is in", "--subject", "Oslo"]
FACTS = [rm.Fact("{} is " + "in " * (i % 3), f"Town {i}") for i in range(ENOUGH_FACTS)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a tiny model of eight layers, its moments, and a file of facts."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", num_hidden_layers=8)
    facts = [{"prompt": fact.prompt, "subject": fact.subject} for fact in FACTS]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    (tmp_path / "text.txt").write_text("a cat sat on the mat and the dog did not " * 200)
    assert main(["moments", "--layers", "0-7", "--corpus", "text.txt", "--tokens", "2000",
                 "--row-length", "64", "--model", "model"]) == 0
    return tmp_path


def said(here, command, *arguments) -> tuple:
    """(decisive layer, layer to edit, how) of a command's JSON."""
    main([*command, "--model", "model", *arguments, "--json", "out.json"])
    found = json.loads((here / "out.json").read_text())
    return found["decisive_layer"], *(found["layer_choice"][name] for name in ("layer", "how"))


def test_trace_and_edit_name_the_same_layers(here, capsys):
    (here / "h.json").write_text('{"ridge": 0.01, "v_num_grad_steps": 2}')
    edit = said(here, ["edit", *FACT, "--target-new", "x"], "--moments", "moments",
                "--hyperparameters", "h.json")
    for options in ([], ["--kind", "mlp"], ["--kind", "attn", "--window", "2"],
                    ["--token-range", "subject_last"], ["--severed", "mlp"]):
        capsys.readouterr()
        assert said(here, ["trace", *FACT], *options) == edit
        shown = " ".join(capsys.readouterr().out.split())
        assert "Decisive layer: " in shown and f"Layer to edit: {edit[1]}, {edit[2]};" in shown


def test_locate_doctor_and_eval_name_the_layer_that_an_edit_without_a_clear_trace_gets(here,
                                                                                      capsys):
    located = said(here, ["locate", "--facts", "facts.json", "--samples", "2", "--noise", "0.5"])
    assert located[2] in ("profile", "depth")
    main(["doctor", "--model", "model"])
    assert f"Layer to edit: {located[1]}, {located[2]};" in " ".join(
        capsys.readouterr().out.split())
    record = {"case_id": 0, "requested_rewrite": {
        "prompt": "{} is in", "subject": "Oslo", "target_new": {"str": "x"},
        "target_true": {"str": "z"}}, "paraphrase_prompts": ["a b"],
        "neighborhood_prompts": ["c d"]}
    (here / "cases.json").write_text(json.dumps([record]))
    main(["eval", "counterfact", "--data", "cases.json", "--method", "none", "--output", "run",
          "--generations", "0", "--model", "model", "--json", "eval.json"])
    choice = json.loads((here / "eval.json").read_text())["layer_choice"]
    assert (choice["layer"], choice["how"]) == located[1:]


def clear_effects(model):
    """Effects of enough facts whose peak, at layer 5, is clear."""
    found = average_effects(model, FakeTokenizer(), FACTS, ("mlp",), samples=2, noise=0.5,
                            token_range="subject_last")
    for record in found.records:
        record |= {"clean_prob": 0.9, "corrupted_prob": 0.1,
                   "deciding": [0.1, 0.1, 0.1, 0.1, 0.4, 0.6, 0.2, 0.1]}
    return found


def test_a_kept_profile_names_the_layer_of_its_model_and_of_no_other():
    model = tiny_model("llama", num_hidden_layers=8)
    assert keep_profile(clear_effects(model))
    choice = layer_to_edit(Decoder(model), ROME)
    assert (choice.layer, choice.how) == (5, "profile")
    assert layer_to_edit(Decoder(model), METHODS["memit"]).layer == 5
    other = tiny_model("llama", num_hidden_layers=8, seed=1)
    assert layer_to_edit(Decoder(other), ROME).how == "depth"
    attention = model.layers[0].self_attn
    attention.k_proj.weight = attention.k_proj.weight * 1.01
    assert stored_profile(Decoder(model)) is None


def test_few_facts_are_no_profile():
    found = clear_effects(tiny_model("llama", num_hidden_layers=8))
    assert not keep_profile(rm.AverageEffects(found.settings, found.identity, found.records[:-1],
                                              []))


def test_calibration_comes_before_the_profile_and_what_is_given_before_all(monkeypatch):
    model = tiny_model("llama", num_hidden_layers=8)
    keep_profile(clear_effects(model))
    assert layer_to_edit(Decoder(model), ROME).how == "profile"
    monkeypatch.setitem(hyperparameters._MODELS, ("llama", 8, 32, 48, 128), "gpt-j")
    choice = layer_to_edit(Decoder(model), ROME)
    assert (choice.layer, choice.how) == (5, "calibration")
    choice = layer_to_edit(Decoder(model), ROME, layer=2)
    assert (choice.layer, choice.how) == (2, "given")


def test_averages_can_be_taken_where_the_first_layer_is_a_mixture():
    model = tiny_model("qwen3_moe", mlp_only_layers=[1, 2])
    found = average_effects(model, FakeTokenizer(), FACTS[:2], ("mlp",), samples=2, noise=0.5)
    assert found.facts_used == 2
    assert layer_to_edit(Decoder(model), ROME).layer in (1, 2)


def test_requests_one_after_the_other_share_the_unedited_models_templates(here, monkeypatch):
    """Each drew its own from the model that carried the edits before it."""
    from rome_mlx.editing.methods import rome

    drawn, sample = [], rome.sample_templates
    monkeypatch.setattr(rome, "sample_templates", lambda *arguments: drawn.append(
        sample(*arguments)) or drawn[-1])
    requests = [{"prompt": "{} is in", "subject": name, "target_new": "x"} for name in "abc"]
    (here / "requests.json").write_text(json.dumps(requests))
    (here / "h.json").write_text('{"ridge": 0.01, "v_num_grad_steps": 2}')
    main(["edit", "--requests", "requests.json", "--moments", "moments", "--model", "model",
          "--layer", "2", "--hyperparameters", "h.json", "--save-path", "edit"])
    assert len(drawn) == 1
    main(["edit", *FACT, "--target-new", "x", "--moments", "moments", "--model", "model",
          "--layer", "2", "--hyperparameters", "h.json"])
    assert len(drawn) == 1  # kept from the last time
    assert json.loads((here / "edit/edit.json").read_text())["context_templates"] == drawn[0]
