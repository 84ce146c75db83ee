"""Subject substitution: put one component's clean activations into the run of another prompt.

The two prompts differ in the subject, so no noise is drawn: the second text is the corruption.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.hooks import find_module, intercept
from ..models.probabilities import log_probabilities
from ..models.tokens import encode, first_target_id

_NAMES = {"output": "hidden", "self_attn": "attn"}  # as mlx-lm has them
MEASURES = ("probability", "logit_difference")


def activation_patching(model, tokenizer, *, clean_text: str, corrupted_text: str,
                        component: str = "mlp", positions: Sequence[int] | int | None = None,
                        layers: Sequence[int] | None = None, measure: str = "probability",
                        answer: str | None = None, corrupted_answer: str | None = None,
                        align: str = "refuse", plot: bool | str = False) -> dict[int, float]:
    """{layer: recovery %} = 100 (patched − corrupted) / (clean − corrupted).

        recovery = activation_patching(model, tokenizer, component="mlp",
                                       clean_text="Paris is the capital of",
                                       corrupted_text="London is the capital of")

    component: "hidden" (the block's output), "mlp", "attn", or a module path within a layer, such
        as "input_layernorm" or "mlp.up_proj"; "output" and "self_attn" are taken as well.
    positions: token positions of the corrupted text to patch, negative from the end; None: all.
    measure: "probability" of the clean answer, or its "logit_difference" against the corrupted
        answer, to prefer where both answers are named.
    answer, corrupted_answer: by default what the model says to each text.
    align: what to do with texts of different token length: "refuse", or "end": the last token
        belongs to the last, and what the longer text has more at its start is left alone.
    plot: True draws `patching-COMPONENT.png`, a path another file.

    The model is left as it was. Raises RomeError for texts that cannot be told apart, and for
    values out of range.
    """
    decoder = Decoder(model)
    if measure not in MEASURES or align not in ("refuse", "end"):
        raise RomeError(f"measure {measure!r} or align {align!r} is unknown; measures are "
                        f"{', '.join(MEASURES)}, align is refuse or end")
    layers = [decoder.check_layer(i) for i in (range(len(decoder.layers)) if layers is None
                                               else layers)]
    paths = {layer: _path(decoder, layer, component) for layer in layers}
    clean_ids, corrupted_ids = (encode(tokenizer, t).ids for t in (clean_text, corrupted_text))
    targets, sources = _aligned(len(clean_ids), len(corrupted_ids), positions, align)

    clean_states, clean_logits = _run(model, clean_ids, keep=paths.values())
    _, corrupted_logits = _run(model, corrupted_ids)
    good = _answer(tokenizer, clean_text, answer, clean_logits)
    bad = _answer(tokenizer, corrupted_text, corrupted_answer, corrupted_logits)
    read = _reader(measure, good, bad)
    clean, corrupted = read(clean_logits), read(corrupted_logits)
    _check_difference(tokenizer, clean, corrupted, good, bad, measure)

    recovery = {}
    for layer, path in paths.items():
        values = _first(clean_states[path])[:, mx.array(sources)]
        _, logits = _run(model, corrupted_ids, replace={path: _put(values, targets)})
        recovery[layer] = 100 * (read(logits) - corrupted) / (clean - corrupted)
    if plot:
        _plot(recovery, plot, component, measure, tokenizer.decode([good]).strip(), clean_text)
    return recovery


def _path(decoder: Decoder, layer: int, component: str) -> str:
    part = _NAMES.get(component, component)
    path = (decoder.path(layer, part) if part in ("hidden", "mlp", "attn")
            else f"{decoder.path(layer)}.{component}")
    find_module(decoder.model, path)
    return path


def _aligned(clean: int, corrupted: int, positions, align: str) -> tuple[list[int], list[int]]:
    """Positions to patch in the corrupted text, and those of the clean text they come from."""
    if clean != corrupted and align == "refuse":
        raise RomeError(f"the clean text has {clean} tokens, the corrupted one {corrupted}; choose "
                        "subjects of the same length, or align from the end with align='end'")
    shift = clean - corrupted
    if positions is None:
        targets = list(range(max(0, -shift), corrupted))
    else:
        given = np.atleast_1d(np.asarray(positions, dtype=int)).tolist()
        targets = [p + corrupted if p < 0 else p for p in given]
    if not targets or not all(0 <= p < corrupted and p + shift >= 0 for p in targets):
        raise RomeError(f"positions {positions!r} are not within both texts, of {clean} and "
                        f"{corrupted} tokens; count from 0, or from the end with negative ones")
    return targets, [p + shift for p in targets]


def _first(out):
    """A module's output (rows, tokens, dim); some give a tuple that begins with it."""
    return out[0] if isinstance(out, tuple) else out


def _put(values: mx.array, positions: list[int]):
    """A function that writes values (1, positions, dim) into a module's output."""
    def function(out):
        state = mx.array(_first(out))
        state[:, mx.array(positions)] = values.astype(state.dtype)
        return (state, *out[1:]) if isinstance(out, tuple) else state

    return function


def _run(model, ids: list[int], keep=(), replace=None):
    """What was kept, by path, and the last position's logits (vocabulary,) float32."""
    with intercept(model, keep=keep, replace=replace) as seen:
        logits = model(mx.array([ids]))[0, -1].astype(mx.float32)
        mx.eval(logits, seen)
    return seen, logits


def _answer(tokenizer, text: str, answer: str | None, logits: mx.array) -> int:
    if answer is not None and not answer.strip():
        raise RomeError(f"the answer {answer!r} is empty; give a word, or leave it out")
    return int(mx.argmax(logits)) if answer is None else first_target_id(tokenizer, text, answer)


def _reader(measure: str, good: int, bad: int):
    if measure == "probability":
        return lambda logits: float(mx.exp(log_probabilities(logits)[good]))
    return lambda logits: float(logits[good] - logits[bad])


def _check_difference(tokenizer, clean, corrupted, good, bad, measure) -> None:
    """Refuse where recovery would be a ratio to nothing."""
    least = 0.01 if measure == "probability" else 0.1
    if clean - corrupted < least:
        answers = f"{tokenizer.decode([good])!r} and {tokenizer.decode([bad])!r}"
        raise RomeError(f"the texts cannot be told apart: the {measure.replace('_', ' ')} is "
                        f"{clean:.4f} in the clean run and {corrupted:.4f} in the corrupted one "
                        f"(answers {answers}); choose subjects with different answers")


def _plot(recovery, plot, component: str, measure: str, answer: str, text: str) -> None:
    from ..view.plot import plot_recovery

    path = f"patching-{component.replace('.', '-')}.png" if plot is True else plot
    what = f"P({answer})" if measure == "probability" else "logit difference"
    plot_recovery(recovery, path, title=f"{component} put into the corrupted run: {text}",
                  label=f"recovery of {what} in %")
