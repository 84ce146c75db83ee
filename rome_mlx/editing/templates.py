"""Contexts that come before the prompt, so that an edit does not hang on one context."""

import re
from collections.abc import Sequence

from ..errors import RomeError
from ..models.sampling import sample, start_token
from ..models.tokens import encode

#: (number of texts, length in tokens), as in the released code
_LENGTHS = ((10, 5), (10, 10))
_TOP_K = 5
#: what MEMIT's contexts begin with, and their length in sampled tokens
_WORDS, _WORDS_LENGTH = ("The", "Therefore", "Because", "I", "You"), 10


def context_templates(model, tokenizer, seed: int = 0,
                      lengths: Sequence[tuple[int, int]] = _LENGTHS) -> list[str]:
    """`{}` and 20 texts "x. {}", x sampled from the model (ROME paper, section 3.1).

    lengths: (how many, of how many tokens), in turn.
    """
    templates = ["{}"]
    start = start_token(tokenizer)
    avoid = set(getattr(tokenizer, "all_special_ids", ()))
    for i, (count, length) in enumerate(lengths):
        rows = sample(model, [[start]] * count, length, seeds=[2 * seed + i], top_k=_TOP_K,
                      avoid=avoid)
        for row in rows:
            templates.append(_template(tokenizer.decode(row)))
    return templates


def memit_templates(model, tokenizer, seed: int = 0) -> list[str]:
    """`{}` and 5 texts "x. {}", x sampled from the model after a common word (MEMIT's code)."""
    templates = ["{}"]
    avoid = set(getattr(tokenizer, "all_special_ids", ()))
    for i, word in enumerate(_WORDS):
        row = sample(model, [encode(tokenizer, word).ids], _WORDS_LENGTH,
                     seeds=[len(_WORDS) * seed + i], top_k=_TOP_K, avoid=avoid)[0]
        templates.append(_template(word + tokenizer.decode(row)))
    return templates


def _template(text: str) -> str:
    return re.sub(r"[{}\s]+", " ", text).strip() + ". {}"


def check_templates(templates: Sequence[str]) -> list[str]:
    """The templates if each has one `{}`, at its end. Raises RomeError otherwise."""
    templates = list(templates)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1 \
                or not template.endswith("{}"):
            raise RomeError(f"the context template {template!r} needs exactly one '{{}}', "
                            "at its end, where the prompt goes")
    if not templates:
        raise RomeError("there is no context template; give at least '{}'")
    return templates
