"""Seconds an edit, and memory, at the beginning of a long sequence and after a thousand edits.

MEMIT over 1,010 facts of data/facts.json, ten a batch, kept in a directory as a run is that can be
stopped. Two steps a value in place of twenty: what a batch costs beside its values is what could
grow. Of the batches around the tenth and around the thousandth edit the medians are compared.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import rome_mlx as rm
from rome_mlx.storage.fact_set import read_fact_set

COUNT, BATCH, BATCHES = 1010, 10, 5


def rows(full: bool, repeats: int) -> list[dict]:
    """One row. repeats and full change nothing: it is one sequence."""
    model, tokenizer = rm.load(dtype="float32")
    seconds, memory = [], []
    with tempfile.TemporaryDirectory() as directory, rm.EditSequence(
            model, tokenizer, rm.memit, directory=Path(directory) / "sequence",
            hyperparameters={"v_num_grad_steps": 2}) as sequence:
        for _ in sequence.write(requests(), BATCH):
            seconds.append(sequence.results[-1]["seconds"] / BATCH)
            memory.append(resident())
            if len(seconds) % 10 == 0:
                print(f"{len(seconds) * BATCH} edits: {seconds[-1]:.2f} s an edit, "
                      f"{memory[-1]:.2f} GB", file=sys.stderr)
    first, last = (float(np.median(some)) for some in (seconds[1:1 + BATCHES], seconds[-BATCHES:]))
    return [{"name": "sequence", "edits": COUNT, "ours_s": last, "first_s": first,
             "growth": last / first, "memory_growth": max(memory[-BATCHES:]) / memory[BATCHES],
             "memory_gb": max(memory[-BATCHES:])}]


def requests() -> list[rm.EditRequest]:
    """Facts of the set, each with the next object of its relation in place of its own."""
    found = []
    for relation in read_fact_set():
        objects = sorted(relation.objects)
        found += [rm.EditRequest(relation.texts[0], subject,
                                 objects[(objects.index(answer) + 1) % len(objects)], answer)
                  for subject, answer in relation.facts if len(objects) > 1]
    return list({one.text: one for one in found}.values())[:COUNT]


def resident() -> float:
    """Memory of this process now, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e9
