"""What a model gives for a prompt: next-token and target probabilities, greedy continuations."""

import mlx.core as mx
import mlx_lm

from ..accel.linux_cpu import log_sum_exp
from .decoder import Decoder
from .tokens import encode, encode_with_target


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


def target_probabilities(model, tokenizer, pairs) -> list[float]:
    """P(target | prompt) for each (prompt, target): the product over the target's tokens.

    A target is a text, or the id of one token.
    """
    decoder, out = Decoder(model), []
    for prompt, target in pairs:
        if isinstance(target, int):
            ids = encode(tokenizer, prompt).ids
            targets = [target]
        else:
            whole, (begin, end) = encode_with_target(tokenizer, prompt, target)
            ids, targets = whole.ids[: end - 1], whole.ids[begin:end]
        h = decoder.run(decoder.enter(decoder.embed([ids])))
        chosen = chosen_log_probabilities(decoder.logits(h[0, -len(targets):]), targets)
        out.append(float(mx.exp(chosen.sum())))
    return out


def first_choice(model, tokenizer, prompt: str) -> int:
    """The id of the likeliest next token."""
    decoder = Decoder(model)
    h = decoder.run(decoder.enter(decoder.embed([encode(tokenizer, prompt).ids])))
    return int(mx.argmax(decoder.logits(h[0, -1])))


def continuation(model, tokenizer, prompt: str, tokens: int = 12) -> str:
    """The greedy continuation of a prompt, as mlx-lm generates it."""
    return mlx_lm.generate(model, tokenizer, encode(tokenizer, prompt).ids, max_tokens=tokens)


def chat_answer(model, tokenizer, question: str, tokens: int = 24) -> str | None:
    """The greedy answer under the model's chat template; None where it has none."""
    if not getattr(tokenizer, "has_chat_template", False):
        return None
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                           add_generation_prompt=True)
    return mlx_lm.generate(model, tokenizer, prompt, max_tokens=tokens)
