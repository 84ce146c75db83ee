"""What a model makes of requests that were written."""

from collections.abc import Sequence

import numpy as np

from ..facts import EditRequest
from ..models.probabilities import token_scores


def efficacy(model, tokenizer, requests: Sequence[EditRequest]) -> dict:
    """{"said", "likelier"}: the share of requests of which the model says every token of the target
    (teacher forcing), and finds it likelier a token than the old one, where that is given; in
    percent, None without any."""
    pairs = [(one.text, target) for one in requests
             for target in (one.target_new, one.target_true) if target is not None]
    scores = dict(zip(pairs, token_scores(model, tokenizer, pairs), strict=True))

    def nll(request: EditRequest, target: str) -> float:
        return float(np.mean([one for one, _ in scores[request.text, target]]))

    said = [all(right for _, right in scores[one.text, one.target_new]) for one in requests]
    likelier = [nll(one, one.target_new) < nll(one, one.target_true) for one in requests
                if one.target_true is not None]
    return {"said": 100 * float(np.mean(said)),
            "likelier": 100 * float(np.mean(likelier)) if likelier else None}
