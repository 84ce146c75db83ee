"""Where the subject ends and which tokens are the target.

Everything is read off the text as it is really tokenized, whole and with the tokenizer's own
special tokens, from character offsets. Tokenizing the pieces on their own gives other tokens.
"""

import re
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RomeError

_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Encoded:
    """A tokenized text: ids and, for every token, the characters [start, end) it covers."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]

    def range(self, start: int, end: int) -> tuple[int, int]:
        """Tokens [b, e) that touch the characters [start, end)."""
        touching = [i for i, (a, b) in enumerate(self.offsets) if a < end and b > start]
        if not touching:
            raise RomeError(f"no token covers {self.text[start:end]!r} in {self.text!r}")
        return touching[0], touching[-1] + 1


def unwrapped(tokenizer):
    """The transformers tokenizer inside mlx-lm's wrapper."""
    return tokenizer._tokenizer if isinstance(tokenizer, TokenizerWrapper) else tokenizer


def encode(tokenizer, text: str) -> Encoded:
    """Tokenize a whole text as mlx-lm's generation does, BOS included where the model has one."""
    inner = unwrapped(tokenizer)
    special = inner.bos_token is None or not text.startswith(inner.bos_token)
    if getattr(inner, "is_fast", False):
        out = inner(text, return_offsets_mapping=True, add_special_tokens=special)
        ids = list(out["input_ids"])
        tokens = inner.convert_ids_to_tokens(ids)
        return Encoded(text, ids, _own_characters(text, tokens, out["offset_mapping"]))
    ids = list(inner.encode(text, add_special_tokens=special))
    return Encoded(text, ids, _offsets_by_decoding(inner, text, ids))


def _own_characters(text: str, tokens: list[str], offsets) -> list[tuple[int, int]]:
    """Offsets where they say too much: a `▁` put in front of the text covers nothing of it, and of
    byte tokens that share the offsets of several characters each covers its own."""
    offsets = [(a, a) if token == "▁" and not text[a:b].isspace() else (a, b)
               for token, (a, b) in zip(tokens, offsets, strict=True)]
    begin = 0
    while begin < len(tokens):
        end, (a, b) = begin, offsets[begin]
        while end < len(tokens) and offsets[end] == (a, b) and _BYTE.fullmatch(tokens[end]):
            end += 1
        if b - a > 1 and end - begin == len(text[a:b].encode()):
            offsets[begin:end] = [(a + i, a + i + 1) for i, character in enumerate(text[a:b])
                                  for _ in character.encode()]
        begin = max(end, begin + 1)
    return offsets


def _offsets_by_decoding(tokenizer, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """Offsets for tokenizers without them: the length of what each prefix of ids decodes to.

    A token that ends within a character covers it, and so does the next one.
    """
    special, offsets, start = set(tokenizer.all_special_ids), [], 0
    for i, token in enumerate(ids):
        decoded = tokenizer.decode(ids[: i + 1], skip_special_tokens=True)
        end = start if token in special else min(len(decoded), len(text))
        offsets.append((start, end))
        start = min(len(decoded.rstrip("\ufffd")), len(text))
    return offsets


def with_target(text: str, target: str) -> str:
    """The text continued by the target, with one space between unless either brings its own.

    White space after the target is left out: it is no part of an answer.
    """
    space = "" if target[:1].isspace() or text[-1:].isspace() else " "
    return text + space + target.rstrip()


def encode_with_target(tokenizer, text: str, target: str) -> tuple[Encoded, tuple[int, int]]:
    """Text and target tokenized together, and the range [b, e) of the target's tokens.

    Position b - 1 predicts the target's first token. Never a special token in between.
    """
    whole = encode(tokenizer, with_target(text, target))
    begin, end = whole.range(len(whole.text) - len(target.strip()), len(whole.text))
    if begin == 0:
        raise RomeError(f"the prompt {text!r} has no token of its own before {target!r}; "
                        "give a longer prompt")
    return whole, (begin, end)


def first_target_id(tokenizer, text: str, target: str) -> int:
    """The id of the target's first token after `text`."""
    encoded, (begin, _) = encode_with_target(tokenizer, text, target)
    return encoded.ids[begin]
