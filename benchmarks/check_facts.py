"""Does the model know the facts of a CounterFact file? Our own records have to pass.

  python benchmarks/check_facts.py [--data data/counterfact.json] [--model MODEL]

A record passes where the true answer is the model's first choice after the prompt and likelier
than the new one there, and likelier than the new one after at least one of the two paraphrases
and most of the neighbors. Exit status 1 where one does not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import rome_mlx as rm
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.metrics import case_scores, target_scores


def failures(model, tokenizer, cases) -> list[str]:
    """A line for every record that the model does not know."""
    out, total = [], {"rewrite": [], "paraphrase": [], "neighborhood": []}
    for case in cases:
        request, scores = case.request, case_scores(model, tokenizer, case)
        known = {group: [p["target_true"] < p["target_new"] for p in prompts]
                 for group, prompts in scores.items()}
        for group, found in known.items():
            total[group] += found
        first = target_scores(model, tokenizer, [(request.text, request.target_true)])[0].right
        for what, fails in (("not the first choice", first < 1),
                            ("the new answer is likelier", not all(known["rewrite"])),
                            ("no paraphrase is known", not any(known["paraphrase"])),
                            ("most neighbors are not known",
                             2 * sum(known["neighborhood"]) <= len(known["neighborhood"]))):
            if fails:
                out.append(f"record {case.case_id} ({request.text!r}): {what}")
    for group, found in total.items():
        print(f"{group}: {sum(found)} of {len(found)} prompts known")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE|HUB", help="(default: our own records)")
    parser.add_argument("--model")
    args = parser.parse_args()
    found = failures(*rm.load(args.model), read_counterfact(args.data))
    print("\n".join(found) or "every record is known")
    sys.exit(bool(found))
