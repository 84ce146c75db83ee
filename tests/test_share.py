"""A card that the hub reads, whatever the edit says, and whose numbers are measured again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from saved_model import save_tiny

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint
from rome_mlx.view.card import base_model, escaped

REQUEST = rm.EditRequest("ab {} lives in", "cde", "x")
PATH = "model.layers.1.mlp.down_proj"
EVIL = "`x`\n---\nlicense: evil\n<script>alert(1)</script> | [a](http://b.c) **x** \x1b[2J {{ x }}"


@pytest.fixture
def saved(tmp_path):
    """The directory of an edit of a tiny model, with what `verify` measured of it."""
    model, tokenizer = rm.load(save_tiny(tmp_path / "tiny", intermediate_size=64), dtype="float32")
    random, module = np.random.RandomState(0), Decoder(model).module(1, "down")
    edit = rm.Edit("rome", [REQUEST], {PATH: rm.LowRank(random.randn(64, 1), random.randn(1, 32))},
                   [1], fingerprints={PATH: fingerprint(module)},
                   model={"path": str(tmp_path / "tiny"), "type": "llama", "dtype": "float32"})
    check = rm.verify(model, tokenizer, edit, paraphrases=["xyz cde"], neighbors=["ab fgh"],
                      retrace=False)
    edit.numbers = {k: v for k, v in check.to_json().items() if k != "retrace"}
    edit.save(tmp_path / "edit")
    return tmp_path / "edit"


def rewritten(directory: Path, change) -> None:
    """edit.json with something else in it."""
    about = json.loads((directory / "edit.json").read_text())
    change(about)
    (directory / "edit.json").write_text(json.dumps(about))


def test_the_card_says_what_was_changed_and_the_hub_reads_it(saved, capsys):
    assert main(["edits", "card", str(saved), "--license", "apache-2.0"]) == 0
    assert "hf upload" in capsys.readouterr().out
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "mlx"
    assert card.data.base_model == "tiny" and {"mlx", "model-editing"} <= set(card.data.tags)
    for part in ("ab cde lives in", "Evidence", "--adapter-path", "revert", "misused", "paraphrase",
                 "down&#95;proj"):
        assert part in card.text


def test_without_a_license_the_card_says_that_it_is_to_be_filled_in(saved):
    assert main(["edits", "card", str(saved)]) == 0
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "unknown" and "unknown: fill in" in card.text
    assert main(["edits", "card", str(saved), "--license", "mit\nx: y"]) == 2


def test_what_an_edit_says_of_itself_adds_neither_keys_nor_html(saved):
    def change(about):
        about["requests"] = [{"prompt": "{} " + EVIL, "subject": EVIL, "target_new": EVIL,
                              "target_true": None}]
        about["method"] = "rome\nlicense: evil"
        about["hyperparameters"] = None
        about["model"]["path"] = "x\nlicense: evil/y: z"
        about["numbers"]["target_true"] = EVIL
        for prompt in about["numbers"]["probabilities"]:
            prompt |= {"prompt": EVIL, "role": EVIL}

    rewritten(saved, change)
    assert main(["edits", "card", str(saved)]) == 0
    text = (saved / "README.md").read_text("utf-8")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert set(yaml.safe_load(front)) == {"base_model", "base_model_relation", "library_name",
                                          "license", "pipeline_tag", "tags"}
    assert yaml.safe_load(front)["license"] == "unknown" and "\x1b" not in text
    assert ModelCard(text).data.license == "unknown"
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    for tag in ("<script", "<a ", "<strong", "<hr"):
        assert tag not in page
    assert "&lt;script&gt;" in page and "[a](http://b.c)" in page


@pytest.mark.parametrize("text", ["a | b", "<b>", "*a* _b_", "`a`", "[a](b)", "&amp;", "\\*", "#",
                                  "http://a.b", "Paris, Île-de-France", "a\nb",
                                  "$x$ ~~y~~ www.a.b"])
def test_escaped_text_is_shown_as_it_is(text):
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(
        f"| x |\n|---|\n| {escaped(text)} |")
    shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in page


def test_the_base_model_is_named_as_the_hub_names_it():
    assert base_model("mlx-community/Llama-3.2-1B-4bit") == "mlx-community/Llama-3.2-1B-4bit"
    assert base_model("/x/models--a--b-1.0/snapshots/0f") == "a/b-1.0"
    default = base_model("/x/SmolLM2-135M-Instruct.Q4_1-v2-0f")
    assert default == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_model("/home/me/my model") == "my-model" and base_model(None) is None


def test_an_edit_is_saved_loaded_and_fused_beside_its_card(saved, tmp_path):
    assert main(["edits", "card", str(saved)]) == 0
    text = (saved / "README.md").read_text()
    edit = rm.load_edit(saved)
    edit.save(saved)
    assert (saved / "README.md").read_text() == text
    assert rm.load_edit(saved).digest == edit.digest
    assert main(["edits", "fuse", str(saved), "--save-path", str(tmp_path / "fused")]) == 0
    assert main(["edits", "card", str(tmp_path / "fused"), "--license", "mit"]) == 0
    card = ModelCard.load(tmp_path / "fused/README.md")
    assert card.data.license == "mit" and card.data.base_model == "tiny"
    assert "before it was fused" in card.text and "--adapter-path" not in card.text
    rm.load(tmp_path / "fused")


def test_what_holds_is_said_number_by_number(saved, tmp_path, capsys):
    assert main(["edits", "verify", str(saved), "--json", str(tmp_path / "v.json")]) == 0
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["holds"] and len(found["claims"]) == 3 * 4 + 4 + 1
    assert "All 17 claims hold" in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    lambda numbers: numbers["probabilities"][1].update(target_new_after=0.99),
    lambda numbers: numbers["side_effects"].update(kl=0.0),
    lambda numbers: numbers["norm_change"].update({PATH: 1e-3})])
def test_a_claim_that_does_not_hold_is_status_1(saved, change, capsys):
    rewritten(saved, lambda about: change(about["numbers"]))
    assert main(["edits", "verify", str(saved)]) == 1
    told = capsys.readouterr()
    assert told.out.count("  NO") == 1 and "1 of 17 claims" in told.err


def test_what_cannot_be_verified_is_status_2(saved, tmp_path, capsys):
    other = save_tiny(tmp_path / "other", seed=1, intermediate_size=64)
    assert main(["edits", "verify", str(saved), "--model", str(other)]) == 2
    assert "computed for" in capsys.readouterr().err
    shutil.copytree(saved, tmp_path / "damaged")
    rewritten(tmp_path / "damaged", lambda about: about["numbers"].update(probabilities=[{}]))
    for action in ("verify", "card"):
        assert main(["edits", action, str(tmp_path / "damaged")]) == 2
        assert "numbers that rome-mlx edit writes" in capsys.readouterr().err
    rewritten(saved, lambda about: about.update(numbers={}))
    assert main(["edits", "verify", str(saved)]) == 2
    assert "without numbers" in capsys.readouterr().err
    assert main(["edits", "card", str(other)]) == 2
