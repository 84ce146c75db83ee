"""A local mlx-lm directory of each family goes through the commands, with no flag of its own."""

import json
import math

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import arguments, tiny_model
from trained import byte_level, sentencepiece

from rome_mlx.cli import main

LAYERS = {"num_hidden_layers": 6}
FAMILIES = {  # what is in config.json beside tiny.py's, and the tokenizer of the style
    "llama": (LAYERS, lambda: byte_level(bos=True)),
    "gpt2": ({"n_layer": 6}, byte_level),
    "gemma3": (LAYERS, lambda: sentencepiece("bare")),
    "qwen3": (LAYERS, byte_level),
    "phi": (LAYERS, byte_level),
    "olmo2": (LAYERS, byte_level),
}
FACT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower"]
CASE = {"case_id": 0, "requested_rewrite": {
    "prompt": "{} is in the city of", "subject": "The Louvre", "relation_id": "P131",
    "target_new": {"str": "Rome"}, "target_true": {"str": "Paris"}},
    "paraphrase_prompts": ["Where is The Louvre? It is in"],
    "neighborhood_prompts": ["The Eiffel Tower is in the city of"]}
TEXT = "The Louvre is in the city of Paris and the tower is in Rome, the capital of Italy.\n" * 150


@pytest.fixture(params=FAMILIES)
def local(request, tmp_path):
    """A directory with a tiny model of the family, a corpus and a benchmark beside it."""
    options, tokenizer = FAMILIES[request.param]
    tokenizer = tokenizer()
    options = {"vocab_size": len(tokenizer), **options}
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(arguments(request.param, **options)))
    model = tiny_model(request.param, **options)
    mx.save_safetensors(str(directory / "model.safetensors"),
                        dict(tree_flatten(model.parameters())), {"format": "mlx"})
    tokenizer.save_pretrained(directory)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "cases.json").write_text(json.dumps([CASE]))
    return tmp_path


def test_a_local_model_is_traced_counted_edited_and_measured(local, capsys):
    def command(name, *more, expected=(0,)):
        status = main([name, *map(str, more), "--model", str(local / "model")])
        assert status in expected, "\n".join(capsys.readouterr())
        return status

    command("trace", *FACT, "--samples", 2, "--json", local / "trace.json")
    command("moments", "--layers", "0-5", "--corpus", local / "text.txt", "--tokens", 600,
            "--output", local / "moments")
    status = command("edit", *FACT, "--target-new", "Rome", "--moments", local / "moments",
                     "--save-path", local / "edit", "--json", local / "edit.json",
                     expected=(0, 1))  # 1 where random weights do not come to prefer the target
    command("eval", "counterfact", "--data", local / "cases.json", "--moments",
            local / "moments", "--output", local / "run", "--json", local / "summary.json")

    trace = json.loads((local / "trace.json").read_text())
    assert len(trace["scores"]) == len(trace["tokens"]) and len(trace["scores"][0]) == 6
    edit = json.loads((local / "edit.json").read_text())
    assert edit["losses"][-1]["nll"] < edit["losses"][0]["nll"]
    assert status == (0 if edit["written"] else 1)
    assert (local / "edit" / "adapters.safetensors").is_file()
    summary = json.loads((local / "summary.json").read_text())
    assert summary["cases"] == 1 and math.isfinite(summary["kl_drift"]["mean"])
