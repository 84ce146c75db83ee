"""Seconds for all prompts of CounterFact cases, ours and the plain way.

The plain way: every prompt with every target is a full forward of its own, and the whole
vocabulary is read at every position. PyTorch, where it is installed: the same in transformers,
padded to one batch a case, as the ROME authors' code does.
"""

import sys
from pathlib import Path

import numpy as np
from timing import mx, seconds
from torch_process import torch_device

import rome_mlx as rm
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.metrics import target_scores
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.tokens import encode_with_target
from rome_mlx.models.weights import weight_shape

CASES = 8


def rows(full: bool, repeats: int) -> list[dict]:
    """One row: `CASES` of our own records (full: all of them)."""
    model, tokenizer = rm.load()
    cases = read_counterfact(limit=None if full else CASES)
    groups = [pairs_of(case) for case in cases]
    found: dict[str, list[float]] = {}

    def ours():
        found["ours"] = [score.nll for pairs in groups
                         for score in target_scores(model, tokenizer, pairs)]

    def direct():
        found["direct"] = [plain(model, tokenizer, *pair) for pairs in groups for pair in pairs]

    ours_s, direct_s = seconds(ours, repeats), seconds(direct, 1 if full else 3)
    torch_s = torch_seconds(tokenizer, groups, repeats, found)
    apart = {way: float(np.abs(np.subtract(found["ours"], found[way])).max())
             for way in found if way != "ours"}
    print(f"{len(cases)} cases: {ours_s:.2f} s, direct {direct_s:.2f} s "
          f"({direct_s / ours_s:.1f} times), PyTorch {torch_s}, apart by {apart}",
          file=sys.stderr)
    return [{"name": "counterfact", "cases": len(cases), "ours_s": ours_s, "direct_s": direct_s,
             "torch_s": torch_s, "direct_ratio": direct_s / ours_s,
             "torch_ratio": torch_s and torch_s / ours_s,
             "necessary_gflop": necessary_gflop(Decoder(model), tokenizer, groups),
             "largest_difference": apart}]


def pairs_of(case) -> list[tuple[str, str]]:
    return [(prompt, target) for prompt in (case.request.text, *case.paraphrases, *case.neighbors)
            for target in (case.request.target_new, case.request.target_true)]


def plain(model, tokenizer, prompt: str, target: str) -> float:
    """Mean NLL of the target from a full forward of mlx-lm's model."""
    whole, (begin, end) = encode_with_target(tokenizer, prompt, target)
    logits = model(mx.array([whole.ids]))[0].astype(mx.float32)
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return float(-mx.mean(mx.stack([log_p[t - 1, whole.ids[t]] for t in range(begin, end)])))


def torch_seconds(tokenizer, groups, repeats: int, found: dict) -> float | None:
    """Median seconds of transformers on the same weights; None, with a word, where it cannot."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        print("PyTorch is not installed; its column stays empty", file=sys.stderr)
        return None
    from rome_mlx.models.loading import _default_model

    path, device = Path(_default_model()), torch_device()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32).eval().to(device)

    def case(pairs) -> list[float]:
        encoded = [encode_with_target(tokenizer, *pair) for pair in pairs]
        width = max(len(whole.ids) for whole, _ in encoded)
        ids = torch.tensor([whole.ids + [0] * (width - len(whole.ids)) for whole, _ in encoded],
                           device=device)
        mask = torch.tensor([[int(i < len(whole.ids)) for i in range(width)]
                             for whole, _ in encoded], device=device)
        with torch.no_grad():
            log_p = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        return [float(-torch.stack([log_p[row, t - 1, whole.ids[t]]
                                    for t in range(*span)]).mean())
                for row, (whole, span) in enumerate(encoded)]

    def all_cases():
        found["torch"] = [nll for pairs in groups for nll in case(pairs)]

    return seconds(all_cases, repeats)


def necessary_gflop(decoder: Decoder, tokenizer, groups) -> float:
    """Matrix products of every prompt run once with its longest target, and of the vocabulary
    once at each position that predicts a target token."""
    numbers = sum(np.prod(weight_shape(m)) for _, m in decoder.layers[0].named_modules()
                  if "weight" in m and m.weight.ndim == 2) * len(decoder.layers)
    runs: set[tuple] = set()
    reads: set[tuple] = set()
    for i, pairs in enumerate(groups):
        for pair in pairs:
            whole, (begin, end) = encode_with_target(tokenizer, *pair)
            runs |= {(i, *whole.ids[:t]) for t in range(1, end)}
            reads |= {(i, *whole.ids[:t]) for t in range(begin, end)}
    return float(2 * numbers * len(runs)
                 + 2.0 * np.prod(weight_shape(decoder.embedding)) * len(reads)) / 1e9
