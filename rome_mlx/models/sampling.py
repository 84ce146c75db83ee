"""Text sampled from the model itself, seeded and in batches."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..accel.linux_cpu import drawn, slow_exponentials
from ..errors import RomeError
from .decoder import Decoder
from .tokens import encode, unwrapped


def beginning(tokenizer) -> list[int]:
    """The special tokens that `encode` puts before every text, such as [BOS]; of many models none.

    They are those before "x" in what the tokenizer makes of it.
    """
    whole = encode(tokenizer, "x").ids
    own = list(unwrapped(tokenizer).encode("x", add_special_tokens=False))
    return next((whole[:i] for i in range(len(whole)) if whole[i: i + len(own)] == own), [])


def start_token(tokenizer) -> int:
    """The token that texts start from: BOS, or EOS where the model has no BOS."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise RomeError("this tokenizer has neither BOS nor EOS to sample from; give a corpus")


def sample(model, prompts: list[list[int]], length: int, *, seeds: Sequence[int] = (0,),
           rows: int | None = None, top_k: int | None = None, avoid=(),
           each: Callable[[int], None] = lambda n: None) -> list[list[int]]:
    """`length` new tokens for every prompt; prompts are of one length, temperature is 1.

    One seed gives the same tokens on one kind of device. On a Linux CPU the whole vocabulary is
    drawn from with one random number per row, where MLX takes one per word.

    seeds: of `rows` rows each, in turn, by default of all alike; the last may have fewer. top_k:
    sample among the k likeliest; avoid: token ids never drawn; each: called with the number of
    tokens that every row has.
    """
    keys, banned = [mx.random.key(seed) for seed in seeds], mx.array(list(avoid), mx.int32)
    uniform = ([np.random.RandomState(seed) for seed in seeds]
               if top_k is None and slow_exponentials() else [])
    share = rows or len(prompts) // len(seeds)

    def draw(logits: mx.array) -> mx.array:
        if uniform:  # a row's numbers are the same however many there are
            numbers = np.concatenate([random.rand(share) for random in uniform])
            return mx.array(drawn(logits, numbers[:len(logits)], list(avoid)))
        if avoid:
            logits[:, banned] = -mx.inf
        if top_k is not None:
            floor = mx.topk(logits, top_k, axis=-1).min(axis=-1, keepdims=True)
            logits = mx.where(logits < floor, -mx.inf, logits)
        found = []
        for i in range(len(keys)):
            keys[i], now = mx.random.split(keys[i])
            found.append(mx.random.categorical(logits[i * share: (i + 1) * share], key=now))
        return mx.concatenate(found)

    start = len(prompts[0])
    whole = continued(model, prompts, start + length, draw, lambda n: each(n - start))
    return [ids[start:] for ids in whole]


def likeliest(count: int, seed: int) -> Callable[[mx.array], mx.array]:
    """A draw for `continued`: among the `count` likeliest words, with one random number for each
    of these."""
    key = mx.random.key(seed)

    def draw(logits: mx.array) -> mx.array:
        nonlocal key
        best = mx.argpartition(-logits, count, axis=-1)[:, :count]
        key, now = mx.random.split(key)
        chosen = mx.random.categorical(mx.take_along_axis(logits, best, axis=-1), key=now)
        return mx.take_along_axis(best, chosen[:, None], axis=-1)[:, 0]

    return draw


def continued(model, prompts: Sequence[Sequence[int]], length: int,
              draw: Callable[[mx.array], mx.array],
              each: Callable[[int], None] = lambda n: None) -> list[list[int]]:
    """Every prompt and what follows it, `length` tokens in all.

    Prompts of different lengths run side by side without padding: where a prompt is longer than
    the others, its own tokens are fed until it ends. draw: logits (rows, vocabulary) float32 ->
    tokens (rows,); each: called with the number of tokens that every row has.
    """
    rows = [list(ids)[:length] for ids in prompts]
    start = min(map(len, rows))
    given = np.full((len(rows), length), -1)
    for row, ids in zip(given, rows, strict=True):
        row[:len(ids)] = ids
    given = mx.array(given)
    with Decoder(model).fast():
        return _continued(model, given, start, draw, each)


def _continued(model, given: mx.array, start: int, draw, each) -> list[list[int]]:
    """Rows of given tokens, -1 where a token is to be drawn; the first `start` of all are given."""
    tokens, out, cache = given[:, :start], [given[:, :start]], make_prompt_cache(model)
    for at in range(start, given.shape[1]):
        logits = model(tokens, cache=cache)[:, -1].astype(mx.float32)
        forced, sampled = given[:, at: at + 1], draw(logits)[:, None]
        tokens = mx.where(forced >= 0, forced, sampled.astype(forced.dtype))
        mx.async_eval(tokens)
        out.append(tokens)
        each(at + 1)
    return mx.concatenate(out, axis=1).tolist()
