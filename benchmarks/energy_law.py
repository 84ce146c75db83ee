"""Does the energy of a change tell what becomes of perplexity? Random values at real keys.

  python benchmarks/energy_law.py --edits edits.json --corpus articles.txt --layers 4,5,6 \\
      [--model MODEL]

MEMIT's equations at the keys of 300 subjects (edits 4,000 on, of lifelong.py's form), with targets
of random directions, as long as a share of the MLP's output there; λ 0.65 for each dimension. For
each share: the energy Σ tr(ΔCΔᵀ), its part of each weight's own, perplexity on the corpus's last
pieces as a multiple, and its logarithm by the energy and by the parts' sum.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import mlx.core as mx
import numpy as np
from lifelong import pieces, request_of

import rome_mlx as rm
from rome_mlx.editing.key import in_contexts, read_keys
from rome_mlx.evaluation.collapse import perplexity
from rome_mlx.models.decoder import Decoder

LAMBDA, FACTS = 0.65, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--edits", required=True, metavar="FILE")
    parser.add_argument("--corpus", required=True, metavar="FILE")
    parser.add_argument("--layers", required=True, type=lambda s: [int(x) for x in s.split(",")])
    parser.add_argument("--tokens", type=int, default=40_960, help="of C")
    args = parser.parse_args()
    model, tokenizer = rm.load(args.model, dtype="float32")
    decoder, corpus = Decoder(model), Path(args.corpus).read_text()
    moments = rm.second_moments(model, tokenizer, args.layers, args.corpus, args.tokens)
    records = json.loads(Path(args.edits).read_text())[4000:][:FACTS]
    texts = [in_contexts(request_of(record), ["{}"])[0] for record in records]
    read = {layer: [read_keys(decoder, tokenizer, texts[i: i + 50], layer)
                    for i in range(0, FACTS, 50)] for layer in args.layers}
    rows = pieces(tokenizer, corpus)
    before, random = perplexity(model, rows), np.random.RandomState(0)
    for share in (0.25, 0.5, 1.0, 2.0, 4.0):
        energies, parts, kept = [], [], []
        for layer in args.layers:
            module, c = decoder.module(layer, "down"), moments[layer].value()
            keys = np.concatenate([some.keys for some in read[layer]]).T
            length = np.linalg.norm(np.concatenate([r.outputs for r in read[layer]]), axis=1)
            targets = random.randn(decoder.dim, FACTS)
            targets *= share * length / np.linalg.norm(targets, axis=0)
            change = np.linalg.solve(LAMBDA * len(c) * c + keys @ keys.T, keys) @ targets.T
            own = np.array(module.weight, np.float64).T
            energies.append(np.einsum("ij,ij->", change, c @ change))
            parts.append(energies[-1] / np.einsum("ij,ij->", own, c @ own))
            kept.append((module, module.weight))
            module.weight = module.weight + mx.array(change.T.astype(np.float32))
        times = perplexity(model, rows) / before
        for module, weight in kept:
            module.weight = weight
        print(f"{share:5} energy {sum(energies):9.2f}  parts {', '.join(f'{x:.4f}' for x in parts)}"
              f"  perplexity x{times:.4f}  log / energy {np.log(times) / sum(energies):.5f}, "
              f"/ parts {np.log(times) / sum(parts):.3f}", flush=True)


if __name__ == "__main__":
    main()
