"""What a model gives for prompts: probabilities of targets, the first choice, what it says next.

Many prompts are asked at once: texts of about one length run side by side, padded on the right.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..accel.linux_cpu import log_sum_exp
from .decoder import Decoder, aligned
from .side_by_side import side_by_side
from .tokens import encode, encode_with_target

_ROWS = 64  # run at once
_SHORTEST = 0.6  # of a batch's longest row: shorter ones go into another batch


def log_probabilities(logits: mx.array) -> mx.array:
    """log P of every word, (..., vocabulary) float32, from logits of any type."""
    logits = logits.astype(mx.float32)
    return logits - log_sum_exp(logits)[..., None]


def chosen_log_probabilities(logits: mx.array, words) -> mx.array:
    """log P of one word per row, (rows,) float32, from logits (rows, vocabulary): without the
    vocabulary's other log probabilities."""
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(words)[:, None], axis=1)[:, 0]
    return chosen - log_sum_exp(logits)


def top_words(logits: mx.array, count: int) -> list[tuple[int, float]]:
    """[(id, P)] of the likeliest next words, the likeliest first; P is the mean over the rows of
    logits (rows, vocabulary)."""
    mean = np.exp(np.array(log_probabilities(logits))).mean(axis=0)
    best = np.argpartition(-mean, count)[:count]
    return [(int(word), float(mean[word])) for word in best[np.argsort(-mean[best])]]


def target_probabilities(model, tokenizer, pairs: Sequence[tuple]) -> list[float]:
    """P(target | prompt) for each (prompt, target): the product over the target's tokens.

    A target is a text, or the id of one token.
    """
    return [float(np.exp(-sum(nll for nll, _ in tokens)))
            for tokens in token_scores(model, tokenizer, pairs)]


def token_scores(model, tokenizer, pairs: Sequence[tuple]) -> list[list[tuple[float, bool]]]:
    """(NLL, whether it is the first choice) of every token of each (prompt, target), after the
    prompt and the target's tokens before it. A target is a text, or the id of one token.

    A text that begins another is not run but read off it, so that a prompt is run once for all
    of its targets of one token. Only the positions that predict a target token are read from the
    vocabulary, each once.
    """
    decoder = Decoder(model)
    inputs, targets = zip(*(_with_target(tokenizer, *pair) for pair in pairs), strict=True)
    ordered = sorted(set(inputs))
    rows = [ids for ids, after in zip(ordered, [*ordered[1:], ()], strict=True)
            if after[:len(ids)] != ids]
    reads: dict[int, list[tuple[int, int, int]]] = {}  # row -> [(pair, position, target id)]
    for i, (ids, target) in enumerate(zip(inputs, targets, strict=True)):
        first = len(ids) - len(target)
        reads.setdefault(bisect_left(rows, ids), []).extend(
            (i, first + j, token) for j, token in enumerate(target))
    tokens: list[list[tuple[float, bool]]] = [[] for _ in pairs]
    with decoder.fast():
        for batch in _batches(rows):
            wanted = [(row, *read) for row, r in enumerate(batch) for read in reads[r]]
            found = _read(decoder, [rows[r] for r in batch], [(w[0], w[2], w[3]) for w in wanted])
            for (_, i, _, _), token in zip(wanted, found, strict=True):
                tokens[i].append(token)
    return tokens


def _with_target(tokenizer, prompt: str, target) -> tuple[tuple[int, ...], list[int]]:
    """Ids up to the last target token, which predicts nothing that is read, and the target's."""
    if isinstance(target, int):
        return tuple(encode(tokenizer, prompt).ids), [target]
    whole, (begin, end) = encode_with_target(tokenizer, prompt, target)
    return tuple(whole.ids[: end - 1]), whole.ids[begin:end]


def padded(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of one length: what comes after a text changes nothing before."""
    width = max(map(len, rows))
    return [[*ids, *[0] * (width - len(ids))] for ids in rows]


def _batches(rows: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """Indices of rows of about one length, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) == _ROWS or len(rows[i]) < _SHORTEST * len(rows[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _read(decoder: Decoder, rows, reads) -> list[tuple[float, bool]]:
    """(NLL, whether it is the first choice) for each (row, position, token id)."""
    h = decoder.run(decoder.enter(decoder.embed(padded(rows))))
    at = sorted({(row, position) for row, position, _ in reads})
    number = {place: i for i, place in enumerate(at)}
    logits = decoder.logits(h[tuple(mx.array(x) for x in zip(*at, strict=True))])
    logits = logits.astype(mx.float32)  # (positions, vocabulary)
    places = mx.array([number[row, position] for row, position, _ in reads])
    targets = mx.array([token for _, _, token in reads])
    nll = log_sum_exp(logits)[places] - logits[places, targets]
    right = mx.argmax(logits, axis=-1)[places] == targets
    return list(zip(nll.tolist(), right.tolist(), strict=True))


def first_choice(model, tokenizer, prompt: str) -> int:
    """The id of the likeliest next token."""
    decoder = Decoder(model)
    h = decoder.run(decoder.enter(decoder.embed([encode(tokenizer, prompt).ids])))
    return int(mx.argmax(decoder.logits(h[0, -1])))


class Said(NamedTuple):
    """What a model says after a prompt, greedily: its first token, the text up to the end of text,
    and whether that came within the tokens it was given."""

    first: int
    text: str
    ended: bool


def said(model, tokenizer, prompts: Sequence[tuple[Sequence[int], int]],
         edits: Sequence | None = None) -> list[Said]:
    """What mlx-lm generates for each (ids of a prompt, tokens at most): prompts side by side, since
    every step reads all of the weights.

    edits: for every prompt the low-rank edit that it is asked with, beside what is applied, or
    None.
    """
    decoder = Decoder(model)
    if not isinstance(tokenizer, TokenizerWrapper):
        tokenizer = TokenizerWrapper(tokenizer)
    edits = [None] * len(prompts) if edits is None else edits
    own = {id(edit): edit for edit in edits}  # each once, however many prompts it has
    number = {name: i for i, name in enumerate(own)}
    generated: list[list[int]] = []
    with side_by_side(model, own.values()) as choose, decoder.fast():
        for i in range(0, len(prompts), _ROWS):
            choose([number[id(edit)] for edit in edits[i: i + _ROWS]])
            generated += _generated(decoder, tokenizer.eos_token_ids, prompts[i: i + _ROWS])
    return [Said(ids[0], _text(tokenizer, ids), ids[-1] in tokenizer.eos_token_ids)
            for ids in generated]


def chat_text(tokenizer, question: str) -> str | None:
    """A question under the chat template, to be answered next; None where the model has none."""
    if not getattr(tokenizer, "has_chat_template", False):
        return None
    return tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                         add_generation_prompt=True, tokenize=False)


def _generated(decoder: Decoder, ends, prompts) -> list[list[int]]:
    """The likeliest tokens after each prompt, the end of text included."""
    lengths, prefixes = [len(ids) for ids, _ in prompts], decoder.prefixes()
    h = decoder.run(decoder.enter(decoder.embed(padded([ids for ids, _ in prompts]))), 0, None,
                    prefixes)
    h = h[mx.arange(len(prompts)), mx.array(lengths) - 1][:, None]
    prefixes = aligned(prefixes, lengths)
    found: list[list[int]] = [[] for _ in prompts]
    while True:
        tokens = mx.argmax(decoder.logits(h), axis=-1)
        going = False
        for ids, token, (_, most) in zip(found, tokens[:, 0].tolist(), prompts, strict=True):
            if len(ids) < most and not (ids and ids[-1] in ends):
                ids.append(token)
                going |= len(ids) < most and token not in ends
        if not going:
            return found
        h = decoder.enter(decoder.embed(tokens), prefixes[0].offset)
        h = decoder.run(h, 0, None, prefixes)
        prefixes = [prefix.upto(prefix.length + 1) for prefix in prefixes]


def _text(tokenizer: TokenizerWrapper, ids: list[int]) -> str:
    """The text of generated tokens up to the end of text."""
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    for token in ids:
        if token in tokenizer.eos_token_ids:
            break
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text
