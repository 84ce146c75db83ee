"""ROME in PyTorch, computed as the authors' code does: a process of its own for speed_edit.py.

The whole model runs over whole prompts: for the key, at every step of the value, and for the
update. C's inverse is at hand, as there. Arguments: a transformers directory and an npz file of the
facts' arrays. Every line read is a fact's number, every line written is what `edit` gives.
"""

import json
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class Rome:
    def __init__(self, directory: str, given: dict):
        torch.set_default_device(str(given["device"]))
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.model.to(str(given["device"]))
        self.model.requires_grad_(False)
        self.given = given
        self.mlp = self.model.model.layers[int(given["layer"])].mlp
        self.inverse = torch.linalg.inv(torch.tensor(given["moment"])).float()

    def edit(self, number: int) -> dict:
        """Seconds, and the update's left and right vector."""
        ids, mask, subjects, at, targets = (
            torch.tensor(self.given[f"{name}{number}"])
            for name in ("ids", "mask", "subjects", "at", "targets"))
        start = time.perf_counter()
        keys, _ = self.at_subjects(ids[:-1], mask[:-1], subjects[:-1])
        left = self.inverse @ keys.mean(0)
        left = left / left.norm()
        value = self.value(ids, mask, subjects, at, targets)
        key, output = self.at_subjects(ids[:1], mask[:1], subjects[:1])
        right = (value - output[0]) / (key[0] @ left)
        return {"seconds": time.perf_counter() - start,
                "left": left.tolist(), "right": right.tolist()}

    def at_subjects(self, ids, mask, subjects):
        """(down projection's input, MLP's output) at each row's subject, (rows, d)."""
        seen, row = {}, torch.arange(len(ids))
        handle = self.mlp.down_proj.register_forward_hook(
            lambda module, inputs, out: seen.update(key=inputs[0][row, subjects],
                                                    output=out[row, subjects]))
        with torch.no_grad():
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        handle.remove()
        return seen["key"], seen["output"]

    def value(self, ids, mask, subjects, at, targets):
        """v*: the contexts are all rows but the last, which is the KL's."""
        steps, rate, kl_factor, decay, clamp = (
            float(self.given[name]) for name in ("steps", "rate", "kl", "decay", "clamp"))
        row, count, initial, before = torch.arange(len(ids)), len(targets), None, None
        delta = torch.zeros(self.model.config.hidden_size, requires_grad=True)

        def add(module, inputs, out):
            nonlocal initial
            if initial is None:
                initial = out[0, subjects[0]].detach().clone()
            out = out.clone()
            out[row, subjects] += delta
            return out

        handle = self.mlp.register_forward_hook(add)
        optimizer = torch.optim.Adam([delta], lr=rate)
        for i in range(int(steps)):
            optimizer.zero_grad()
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            log_p = torch.log_softmax(logits, dim=-1)
            kl = log_p[count, subjects[count]]
            before = kl.detach() if before is None else before
            loss = (-log_p[row[:count], at, targets].mean()
                    + kl_factor * (kl.exp() * (kl - before)).sum()
                    + decay * delta.norm() / initial.norm() ** 2)
            if i == int(steps) - 1:
                break
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta *= min(1.0, float(clamp * initial.norm() / delta.norm()))
        handle.remove()
        return initial + delta.detach()


if __name__ == "__main__":
    with np.load(sys.argv[2], allow_pickle=False) as arrays:
        rome = Rome(sys.argv[1], dict(arrays))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(rome.edit(int(line))), flush=True)
