"""How far an edited model has moved on text that has nothing to do with the edit."""

import mlx.core as mx
import numpy as np

from ..data_files import read_lines
from ..decoder import Decoder
from ..linux_cpu import fast_gates, log_sum_exp
from ..tokens import encode

_LENGTH = 32  # tokens of each paragraph
_STRIDE = 4  # every so many of them the vocabulary is read


class Drift:
    """KL(unedited ‖ now) of the next token on data/neutral.txt, mean over positions, in nats.

        drift = Drift(model, tokenizer)     # the model as it is now is what it is held against
        with edit.applied(model):
            drift.now()
    """

    def __init__(self, model, tokenizer):
        self.decoder = Decoder(model)
        self.ids = [encode(tokenizer, line).ids[:_LENGTH] for line in read_lines("neutral.txt")]
        self.before = self._log_p()

    def now(self) -> float:
        after = self._log_p()
        return float(np.mean([float((mx.exp(p) * (p - q)).sum(axis=-1).mean())
                              for p, q in zip(self.before, after, strict=True)]))

    def _log_p(self) -> list[mx.array]:
        """Log probabilities (positions, vocabulary) of each paragraph."""
        decoder, out = self.decoder, []
        with fast_gates([decoder.module(i, "mlp") for i in range(len(decoder.layers))]):
            width = max(map(len, self.ids))
            h = decoder.run(decoder.enter(decoder.embed(
                [[*ids, *[0] * (width - len(ids))] for ids in self.ids])))
            for row, ids in zip(h, self.ids, strict=True):
                logits = decoder.logits(row[_STRIDE - 1: len(ids): _STRIDE]).astype(mx.float32)
                out.append(logits - log_sum_exp(logits)[:, None])
                mx.eval(out[-1])
        return out
