"""A thousand edits in a row: what they still do, and what becomes of the model.

  python benchmarks/lifelong.py --data counterfact_edits.json --method memit --batch 100 \\
      --count 1070 --corpus wikipedia_articles.txt --texts me_ppl_1k.json --output runs/memit-100

Records are of the form {"prompt", "subject", "target_new", "ground_truth", "rephrase_prompt",
"locality_prompt", "locality_ground_truth"}, one edit each, the subject within the prompt. At every
checkpoint: of the last hundred edits, of the first hundred and of all, how many the model says
(every token of the new answer its first choice) and finds likelier than the old answer, after the
prompt and after its paraphrase; of the neighbors, how many keep the answer that the unedited model
gave, and how many that it had right are right; perplexity on --texts and on --corpus; of 200 facts
of our own with four answers each, how many are answered rightly; norms. All that is measured is
kept in --output, where a run that is stopped, also by kill -9, goes on. `lifelong_plot.py` draws
several.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import positive  # noqa: E402
from rome_mlx.editing.layer_choice import layers_to_edit  # noqa: E402
from rome_mlx.editing.methods import find_method  # noqa: E402
from rome_mlx.evaluation.collapse import growth, perplexity  # noqa: E402
from rome_mlx.evaluation.probes.ability import choices  # noqa: E402
from rome_mlx.intervals import mean_interval  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.models.probabilities import said, token_scores  # noqa: E402
from rome_mlx.models.sampling import beginning  # noqa: E402
from rome_mlx.models.tokens import encode  # noqa: E402
from rome_mlx.moments.lookup import ensure_moments  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

AT = (10, 30, 100, 300, 1000, 2000)
SHARE = 100  # edits of the first and the last share
WIKIPEDIA = 40  # pieces of the corpus, of 128 tokens


def main() -> None:
    args = arguments()
    model, tokenizer = rm.load(args.model, dtype="float32")
    method = find_method(args.method)
    hp = json.loads(args.hyperparameters) if args.hyperparameters else None
    records = json.loads(Path(args.data).read_text())[args.first:]
    records = [records[i] for i in np.random.RandomState(args.seed).permutation(len(records))]
    records = records[:args.count]
    requests = [request_of(record) for record in records]
    moments = args.moments
    if method.needs_moments and moments is None:
        layers = layers_to_edit(Decoder(model), method, args.layer, hp)
        moments = ensure_moments(model, tokenizer, [layers] if isinstance(layers, int) else layers,
                                 None, seed=0, corpus=args.corpus)
    run = Run(Path(args.output) / "measures", {**vars(args), "output": None, "count": None,
                                               "at": None}, Identity.of(model))
    measuring = Measuring(run, model, tokenizer, records, args)
    with rm.EditSequence(model, tokenizer, method.write, args.layer, moments=moments,
                         hyperparameters=hp, directory=Path(args.output) / "sequence") as sequence:
        done = 0
        for count in sorted({*(n for n in args.at if n < len(records)), len(records)}):
            for edit in sequence.write(requests[done:count], args.batch):
                numbers = ", ".join(f"{name} {value:.0f}" for name, value in edit.numbers.items())
                print(f"  {len(sequence.requests)} written; of the batch {numbers} %",
                      file=sys.stderr)
            done = count
            print(line(measuring.at(count, sequence)), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--texts", required=True, metavar="FILE", help='JSON of {"Text": ...}')
    parser.add_argument("--corpus", required=True, metavar="FILE",
                        help="plain text: of the moments, and, its last part, for perplexity")
    parser.add_argument("--model", help="(default: the default model)")
    parser.add_argument("--method", default="memit")
    parser.add_argument("--hyperparameters", metavar="JSON", help="changes to the model's own")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--moments", metavar="DIR", help="(default: counted on --corpus, kept)")
    parser.add_argument("--batch", type=positive, default=100)
    parser.add_argument("--count", type=positive, default=1070)
    parser.add_argument("--first", type=int, default=0, help="position of the first record")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--at", type=lambda text: tuple(map(int, text.split(","))), default=AT,
                        help="when to measure (default 10,30,100,300,1000,2000, and the end)")
    parser.add_argument("--read", type=positive, default=200, help="of --texts (default 200)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where it resumes")
    return parser.parse_args()


def request_of(record: dict) -> rm.EditRequest:
    fact = rm.Fact.from_text(record["prompt"], record["subject"])
    return rm.EditRequest(fact.prompt, fact.subject, record["target_new"], record["ground_truth"])


class Measuring:
    """What the model with so many edits makes of their records, and of other text."""

    def __init__(self, run: Run, model, tokenizer, records: list[dict], args):
        self.run, self.model, self.tokenizer, self.records = run, model, tokenizer, records
        texts = [one["Text"] for one in json.loads(Path(args.texts).read_text())]
        self.rows = {"texts": self._ids(texts[::max(1, len(texts) // args.read)]),
                     "wikipedia": pieces(tokenizer, Path(args.corpus).read_text())}
        self.before = run.map([Item("unedited", {})], lambda group, todo: {0: self._unedited()})[0]

    def at(self, count: int, sequence) -> dict:
        """Measured, or read where it was measured before."""

        def compute(group, todo) -> dict:
            if len(sequence.requests) != count:
                raise rm.RomeError(f"{len(sequence.requests)} edits are written, and nothing was "
                                   f"measured after {count}; start anew in another --output")
            return {0: self._now(count, sequence)}

        return self.run.map([Item(f"at_{count:05d}", {})], compute)[0]

    def _unedited(self) -> dict:
        prompts = [record["locality_prompt"] for record in self.records]
        answers = said(self.model, self.tokenizer,
                       [(encode(self.tokenizer, prompt).ids, 1) for prompt in prompts])
        return {"answers": [one.first for one in answers],
                "right": self._likelier("locality_prompt", "locality_ground_truth", "target_new",
                                        self.records)[0],
                "perplexity": self._perplexity(),
                "choices": interval(choices(self.model, self.tokenizer))}

    def _now(self, count: int, sequence) -> dict:
        records, before = self.records[:count], self.before
        new, new_said = self._likelier("prompt", "target_new", "ground_truth", records)
        again, again_said = self._likelier("rephrase_prompt", "target_new", "ground_truth", records)
        near, _ = self._likelier("locality_prompt", "locality_ground_truth", "target_new", records)
        same = [tokens[0][1] for tokens in token_scores(self.model, self.tokenizer, [
            (record["locality_prompt"], answer) for record, answer in
            zip(records, before["answers"], strict=False)])]
        shares = {"all": slice(None), "first": slice(0, SHARE), "last": slice(-SHARE, None)}
        found = {f"{name}_{share}": interval(values[where])
                 for name, values in (("likelier", new), ("said", new_said),
                                      ("paraphrase", again), ("paraphrase_said", again_said))
                 for share, where in shares.items()}
        held = [now for now, was in zip(near, before["right"], strict=False) if was]
        return {"edits": count, **found, "neighbors_held": interval(held),
                "neighbors_same": interval(same), "perplexity": self._perplexity(),
                "choices": interval(choices(self.model, self.tokenizer)),
                "choices_before": before["choices"],
                "perplexity_before": before["perplexity"], "growth": growth(self.model),
                "disturbance": sequence.disturbance(),
                "seconds": [one["seconds"] for one in sequence.results]}

    def _likelier(self, prompt: str, one: str, other: str, records) -> tuple[list, list]:
        """Of every record: whether `one` is likelier a token than `other`, and said."""
        pairs = [(record[prompt], record[target]) for record in records for target in (one, other)]
        scores = token_scores(self.model, self.tokenizer, pairs)
        nll = [float(np.mean([x for x, _ in tokens])) for tokens in scores]
        return ([a < b for a, b in zip(nll[::2], nll[1::2], strict=True)],
                [all(first for _, first in tokens) for tokens in scores[::2]])

    def _perplexity(self) -> dict:
        return {name: perplexity(self.model, rows) for name, rows in self.rows.items()}

    def _ids(self, texts) -> list[list[int]]:
        return [encode(self.tokenizer, text).ids[:256] for text in texts]


def pieces(tokenizer, text: str) -> list[list[int]]:
    """The text's last pieces, each begun as the tokenizer begins a text."""
    first = beginning(tokenizer)
    ids = encode(tokenizer, text[-10 * 128 * WIKIPEDIA:]).ids[len(first):]
    return [first + ids[i: i + 128] for i in range(0, len(ids) - 128, 128)][-WIKIPEDIA:]


def interval(values) -> dict:
    """The mean in percent, with a 95 % interval over edits; None of both where there are none."""
    if not len(values):
        return {"mean": None, "ci95": None}
    shares = 100 * np.array(values, np.float64)
    return {"mean": float(shares.mean()), "ci95": mean_interval(shares, range(len(shares)), True)}


def line(found: dict) -> str:
    def of(name: str) -> str:
        mean = found[name]["mean"]
        return "  –  " if mean is None else f"{mean:5.1f}"

    ratios = [found["perplexity"][name] / value
              for name, value in found["perplexity_before"].items()]
    return (f"{found['edits']:>5}  likelier {of('likelier_all')} (first {of('likelier_first')}, "
            f"last {of('likelier_last')})  said {of('said_all')}  paraphrase "
            f"{of('paraphrase_all')}  neighbors {of('neighbors_held')}, same "
            f"{of('neighbors_same')}  perplexity x{', x'.join(f'{r:.3f}' for r in ratios)}  norm "
            f"x{max(found['growth'].values()):.3f}  {np.mean(found['seconds']):.2f} s a batch")


if __name__ == "__main__":
    main()
