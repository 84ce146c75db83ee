"""Text sampled from the model itself, seeded and in batches."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..accel.linux_cpu import drawn, slow_exponentials
from ..errors import RomeError
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


def sample(model, prompts: list[list[int]], length: int, *, seed: int = 0,
           top_k: int | None = None, avoid=(),
           each: Callable[[int], None] = lambda n: None) -> list[list[int]]:
    """`length` new tokens for every prompt; prompts are of one length, temperature is 1.

    One seed gives the same tokens on one kind of device. On a Linux CPU the whole vocabulary is
    drawn from with one random number per row, where MLX takes one per word.

    top_k: sample among the k likeliest; avoid: token ids never drawn; each: called with the number
    of tokens that every row has.
    """
    cache, key = make_prompt_cache(model), mx.random.key(seed)
    uniform = np.random.RandomState(seed) if top_k is None and slow_exponentials() else None
    tokens, out = mx.array(prompts), []
    banned = mx.array(list(avoid)) if avoid else None
    for _ in range(length):
        logits = model(tokens, cache=cache)[:, -1].astype(mx.float32)
        if banned is not None:
            logits[:, banned] = -mx.inf
        if top_k is not None:
            floor = mx.topk(logits, top_k, axis=-1).min(axis=-1, keepdims=True)
            logits = mx.where(logits < floor, -mx.inf, logits)
        if uniform is not None:
            tokens = mx.array(drawn(logits, uniform.rand(len(prompts))))[:, None]
        else:
            key, draw = mx.random.split(key)
            tokens = mx.random.categorical(logits, key=draw)[:, None]
        mx.async_eval(tokens)
        out.append(tokens)
        each(len(out))
    return mx.concatenate(out, axis=1).tolist()
