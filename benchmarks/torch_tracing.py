"""What users of PyTorch would pick to restore one cell: plain forward hooks, nnsight, pyvene.

Each runs the whole model over the corrupted rows, with the clean run's states read once before.
Needs the extra `bench`; `peers` says what is missing and leaves it out.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version

import numpy as np
from torch_process import torch_device

Cell = Callable[[int, int, str], float]


def peers(gguf, ids: list[int], begin: int, noise: np.ndarray, window: int) -> dict[str, Cell]:
    """name -> P(answer), averaged over rows, with (token, layer, kind) restored.

    gguf: the model's file; noise: (rows, subject tokens, dim), added from token `begin` on.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        print(f"{', '.join(missing)} not installed: no PyTorch peers (the extra bench brings them)",
              file=sys.stderr)
        return {}
    model = _Model(gguf, ids, begin, noise, window)
    out = {f"hooks (torch {version('torch')})": model.with_hooks}
    for name, make in (("nnsight", model.with_nnsight), ("pyvene", model.with_pyvene)):
        if importlib.util.find_spec(name):
            out[f"{name} {version(name)}"] = make()
        else:
            print(f"{name} not installed: left out", file=sys.stderr)
    return out


class _Model:
    """The model in transformers, float32, with the clean run's states and the corrupted rows."""

    def __init__(self, gguf, ids, begin: int, noise: np.ndarray, window: int):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_default_device(torch_device())
        self.torch, self.window = torch, window
        torch.set_grad_enabled(False)
        torch.set_num_threads(os.cpu_count() or 1)
        self.model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32).eval().to(torch_device())
        self.layers = self.model.model.layers
        self.ids = torch.tensor([ids] * len(noise))
        self.noise = torch.zeros(len(noise), len(ids), noise.shape[2])
        self.noise[:, begin:begin + noise.shape[1]] = torch.tensor(noise, dtype=torch.float32)
        self.clean: dict[tuple[str, int], object] = {}
        with ExitStack() as stack:
            for kind in ("hidden", "mlp", "attn"):
                for at in range(len(self.layers)):
                    self._hook(stack, self.module(self.layers[at], kind),
                               lambda out, key=(kind, at): self.clean.update({key: out.clone()}))
            logits = self.model(self.ids[:1], use_cache=False).logits
        self.answer = int(logits[0, -1].argmax())

    @staticmethod
    def module(layer, kind: str):
        return {"hidden": layer, "mlp": layer.mlp, "attn": layer.self_attn}[kind]

    def chosen(self, layer: int, kind: str) -> range:
        if kind == "hidden":
            return range(layer, layer + 1)
        return range(max(0, layer - self.window // 2),
                     min(len(self.layers), layer + (self.window + 1) // 2))

    def probability(self, logits) -> float:
        """Mean P(answer) over rows, of logits (rows, 1, vocabulary)."""
        return float(logits[:, -1].softmax(-1)[:, self.answer].mean())

    def _hook(self, stack: ExitStack, module, function) -> None:
        def hook(module, inputs, output):
            out = function(output[0] if isinstance(output, tuple) else output)
            if out is None:
                return None
            return (out, *output[1:]) if isinstance(output, tuple) else out

        stack.callback(module.register_forward_hook(hook).remove)

    def with_hooks(self, token: int, layer: int, kind: str) -> float:
        def put(out, value):
            out[:, token] = value

        with ExitStack() as stack:
            self._hook(stack, self.model.model.embed_tokens, lambda out: out + self.noise)
            for at in self.chosen(layer, kind):
                self._hook(stack, self.module(self.layers[at], kind),
                           lambda out, value=self.clean[kind, at][0, token]: put(out, value))
            return self.probability(
                self.model(self.ids, use_cache=False, logits_to_keep=1).logits)

    def with_nnsight(self) -> Cell:
        from nnsight import NNsight

        model, layers = NNsight(self.model), range(len(self.layers))

        def cell(token: int, layer: int, kind: str) -> float:
            noise, clean, at_token = self.noise, self.clean, token
            chosen = [i for i in layers if i in self.chosen(layer, kind)]
            with model.trace(self.ids, use_cache=False, logits_to_keep=1):
                model.model.embed_tokens.output[:] = model.model.embed_tokens.output + noise
                for i in chosen:
                    block = model.model.layers[i]
                    if kind == "hidden":
                        block.output[:, at_token] = clean[kind, i][0, at_token]
                    elif kind == "mlp":
                        block.mlp.output[:, at_token] = clean[kind, i][0, at_token]
                    else:
                        block.self_attn.output[0][:, at_token] = clean[kind, i][0, at_token]
                logits = model.output.logits.save()
            return self.probability(logits)

        return cell

    def with_pyvene(self) -> Cell:
        import pyvene

        component = {"hidden": "block_output", "mlp": "mlp_output", "attn": "attention_output"}
        embedded = self.model.model.embed_tokens(self.ids) + self.noise
        rows, tokens = self.ids.shape

        def cell(token: int, layer: int, kind: str) -> float:
            chosen = self.chosen(layer, kind)
            model = pyvene.IntervenableModel(pyvene.IntervenableConfig(representations=[
                pyvene.RepresentationConfig(0, "block_input", "pos", tokens,
                                            intervention_type=pyvene.VanillaIntervention),
                *(pyvene.RepresentationConfig(at, component[kind], "pos", 1,
                                              intervention_type=pyvene.VanillaIntervention)
                  for at in chosen)]), model=self.model)
            values = [embedded, *(self.clean[kind, at][:, token:token + 1].expand(rows, -1, -1)
                                  for at in chosen)]
            where = [[list(range(tokens))] * rows, *[[[token]] * rows for _ in chosen]]
            _, out = model(
                {"input_ids": self.ids}, unit_locations={"base": where},
                source_representations=dict(zip(model.interventions, values, strict=True)))
            return self.probability(out.logits)

        return cell
