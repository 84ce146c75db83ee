"""Contexts that come before the prompt, so that an edit does not hang on one context."""

import re
from collections.abc import Sequence

from ..errors import RomeError
from ..sampling import sample, start_token

#: (number of texts, length in tokens), as in the released code
_LENGTHS = ((10, 5), (10, 10))
_TOP_K = 5


def context_templates(model, tokenizer, seed: int = 0) -> list[str]:
    """`{}` and 20 texts "x. {}", x sampled from the model (ROME paper, section 3.1)."""
    templates = ["{}"]
    start = start_token(tokenizer)
    avoid = set(getattr(tokenizer, "all_special_ids", ()))
    for i, (count, length) in enumerate(_LENGTHS):
        rows = sample(model, [[start]] * count, length, seed=2 * seed + i, top_k=_TOP_K,
                      avoid=avoid)
        for row in rows:
            text = re.sub(r"[{}\s]+", " ", tokenizer.decode(row)).strip()
            templates.append(f"{text}. {{}}")
    return templates


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
