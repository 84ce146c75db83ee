"""The files of this directory, from the directory of reference numbers that README.md describes.

  python tests/reference/make.py DIRECTORY
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
#: what the authors' code prints after each step of the value's optimization
LOSS = re.compile(r"loss (\S+) = (\S+) \+ (\S+) \+ (\S+) avg prob of \[.*\] (\S+)")
COLUMNS = ("total", "nll", "kl", "decay", "probability")
GROUPS = ("rewrite", "paraphrase", "neighborhood")
STATES = {"before": "pre", "after": "post"}
MOMENT = {
    "what": "upper triangle of E[k kᵀ], row after row, of the inputs of mlp.down_proj",
    "made_by": "the ROME authors' released code on SmolLM2-135M-Instruct, float32, PyTorch on a "
               "CPU; sums in float64",
    "text": "long Wikipedia articles, plain text, in one piece, no special tokens, "
            "120 rows of 256 tokens"}


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def nine_digits(value):
    """Nested lists and dictionaries with every float at nine digits, which keep a float32 whole."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: nine_digits(item) for key, item in value.items()}
    return [nine_digits(item) for item in value] if isinstance(value, list) else value


def write(name: str, about: dict, key: str, records: list[dict]) -> None:
    """A JSON file with one record per line, so that a difference can be read."""
    head = json.dumps(about, ensure_ascii=False, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(nine_digits(record), ensure_ascii=False) for record in records)
    (HERE / name).write_text(f'{head},\n "{key}": [\n{lines}\n]}}\n', "utf-8")


def traces(source: dict) -> None:
    about = {key: source[key] for key in ("noise_level", "embedding_std", "samples", "window")}
    records = [{"noise_level": source["noise_level"], **trace} for trace in source["traces"]]
    for record in records:
        del record["seconds"]
    write("traces.json", about, "traces", records)


def edits(source: dict) -> None:
    about = {"context_templates": source["context_templates"], "hyperparameters": source["hparams"]}
    records = []
    for edit in source["edits"]:
        losses = [dict(zip(COLUMNS, map(float, LOSS.match(line).groups()), strict=True))
                  for line in edit["losses"]]
        records.append({**edit, "losses": losses})
        del records[-1]["seconds"]
    write("edits.json", about, "edits", records)


def counterfact(source: dict) -> None:
    records = []
    for case in source["cases"]:
        nlls = {state: {group: [[prompt["target_new"], prompt["target_true"]]
                                for prompt in case[theirs][f"{group}_prompts_probs"]]
                        for group in GROUPS} for state, theirs in STATES.items()}
        records.append({"case_id": case["case_id"], **nlls})
    write("counterfact.json", {"layer": source["layer"]}, "cases", records)


def second_moment(directory: Path, layer: int) -> None:
    with np.load(directory / f"second_moment_layer{layer}.npz", allow_pickle=False) as file:
        moment, count = file["moment"], int(file["count"])
    upper = moment[np.triu_indices(len(moment))]
    save_file({"upper": upper}, HERE / f"second_moment_layer_{layer}.safetensors",
              {**MOMENT, "layer": str(layer), "dim": str(len(moment)), "count": str(count)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    traces(read(directory / "trace.json"))
    edits(read(directory / "rome.json"))
    counterfact(read(directory / "counterfact_layer8.json"))
    for layer in (8, 12):
        second_moment(directory, layer)


if __name__ == "__main__":
    main()
