"""Seconds of a case of each further measure of an evaluation, after edits.

Every one of our own records has an edit of rank one. Texts are continued side by side, each row
with its own edit, and beside it one edit at a time.
"""

import sys

import numpy as np
from timing import seconds

import rome_mlx as rm
from rome_mlx.editing.lowrank import LowRank
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.further import read_all
from rome_mlx.evaluation.mquake import read_mquake
from rome_mlx.evaluation.probes import PROBES
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.weights import weight_shape

CASES, LAYER = 16, 5
MEASURES = ("wild", "distractor", "relations", "negation", "reversal", "hops")


def rows(full: bool, repeats: int) -> list[dict]:
    """A row for each measure."""
    model, tokenizer = rm.load()
    records, chains = read_counterfact(limit=CASES), read_mquake(limit=CASES)
    return [row(name, model, tokenizer, chains if name == "hops" else records, repeats)
            for name in MEASURES]


def row(name: str, model, tokenizer, cases, repeats: int) -> dict:
    """One measure of the cases that it applies to; those with texts edit by edit too."""
    probe = PROBES[name]
    cases = [case for case in cases if probe.applies(case)]
    edits, said = edits_of(Decoder(model), len(cases)), {}

    def together():
        said["together"] = read_all(probe, model, tokenizer, cases, edits)

    def alone():
        said["alone"] = [read_all(probe, model, tokenizer, [case], [edit])[0]
                         for case, edit in zip(cases, edits, strict=True)]

    found = {"name": name, "cases": len(cases), "ours_s": seconds(together, repeats)}
    found["a_case_s"] = found["ours_s"] / len(cases)
    told = f"{name}: {found['a_case_s']:.2f} s a case"
    if probe.prompts:
        found["ratio"] = seconds(alone, min(repeats, 3)) / found["ours_s"]
        found["alike"] = sum(a == b for a, b in zip(said["together"], said["alone"], strict=True))
        told += (f", one edit at a time {found['ratio']:.1f} times; {found['alike']} of "
                 f"{len(cases)} cases alike")
    print(told, file=sys.stderr)
    return found


def edits_of(decoder: Decoder, count: int) -> list[rm.Edit]:
    """So many edits of rank one, as strong as a fact's."""
    random, path = np.random.RandomState(0), decoder.path(LAYER, "down")
    out, into = weight_shape(decoder.module(LAYER, "down"))
    return [rm.Edit("rome", [], {path: LowRank(random.randn(into, 1) / np.sqrt(into),
                                               random.randn(1, out) / np.sqrt(out))}, [LAYER])
            for _ in range(count)]
