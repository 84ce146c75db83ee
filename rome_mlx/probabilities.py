"""What a model gives for a prompt: next-token and target probabilities, greedy continuations."""

import mlx.core as mx
import mlx_lm

from .decoder import Decoder
from .tokens import encode, encode_with_target


def target_probabilities(model, tokenizer, pairs) -> list[float]:
    """P(target | prompt) for each (prompt, target): the product over the target's tokens."""
    decoder, out = Decoder(model), []
    for prompt, target in pairs:
        whole, (begin, end) = encode_with_target(tokenizer, prompt, target)
        h = decoder.run(decoder.enter(decoder.embed([whole.ids[: end - 1]])))
        logits = decoder.logits(h[0, begin - 1:]).astype(mx.float32)
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        ids = mx.array(whole.ids[begin:end])[:, None]
        out.append(float(mx.exp(mx.take_along_axis(log_p, ids, axis=1).sum())))
    return out


def first_choice(model, tokenizer, prompt: str) -> tuple[str, float]:
    """The likeliest next token, decoded, and its probability."""
    decoder = Decoder(model)
    h = decoder.run(decoder.enter(decoder.embed([encode(tokenizer, prompt).ids])))
    p = mx.softmax(decoder.logits(h[0, -1]).astype(mx.float32))
    best = int(mx.argmax(p))
    return tokenizer.decode([best]), float(p[best])


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
