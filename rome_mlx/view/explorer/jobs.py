"""What a page can ask of the model. Each job is a generator: where it yields, the model is as it
was loaded and other pages' jobs may go on; what it finds it tells.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ...editing.methods import ROME
from ...errors import RomeError
from ...evaluation.verify import verify
from ...facts import EditRequest, Fact
from ...models.probabilities import chat_text, said, top_words
from ...models.tokens import encode
from ...moments.lookup import moments_told
from ...pipeline import locate_then_edit
from ...tracing.attribution import Estimates
from ...tracing.decision import scaled_window
from ...tracing.trace import FactRuns, check_values, intervals
from ..layers import sentences
from .session import Session

Tell = Callable[[dict], None]
_WORDS = 5  # likeliest next words that are shown
_TOKENS = 24  # of an answer, at most


def trace_job(session: Session, asked: dict, tell: Tell) -> Iterator[None]:
    """The map of a fact: its tokens, then estimates of all cells, then row by row exact ones.

    asked: {"prompt", "subject", "kind"}. The rows together are `trace`'s scores.
    """
    fact, kind = _fact(asked), _text(asked, "kind")
    window = scaled_window(len(session.decoder.layers))
    check_values(kind, 1, window, None)
    runs = FactRuns(session.model, session.tokenizer, fact, noise=session.noise,
                    noise_seed=1 + session.seed)
    begin, end = runs.subject
    names = [session.tokenizer.decode([i]) for i in runs.ids]
    tell({"event": "fact", "prompt": fact.prompt, "subject": fact.subject, "kind": kind,
          "window": window, "samples": runs.samples, "tokens": names,
          "subject_range": [begin, end], "answer": session.tokenizer.decode([runs.answer]),
          "clean_prob": runs.clean_prob, "corrupted_prob": float(runs.base.mean())})
    yield
    estimate = Estimates(runs).scores(kind, window, "all")
    tell({"event": "estimate", "scores": estimate.mean(-1).tolist(),
          "told": sentences(None, session.choice)})
    yield
    found = np.empty((len(names), runs.layers, runs.samples), np.float32)
    for position in _order(end - 1, len(names)):
        found[position], words = runs.row(kind, window, position, _WORDS)
        tell({"event": "row", "position": position, "scores": found[position].mean(-1).tolist(),
              "intervals": intervals(found[position]).tolist(),
              "words": [_words(session, some) for some in words]})
        yield
    trace = runs.whole(kind, None, window, "all", found)
    tell({"event": "exact", "told": sentences(trace.decision, session.choice)})


def edit_job(session: Session, asked: dict, tell: Tell) -> Iterator[None]:
    """Write another answer, then measure it. asked: {"prompt", "subject", "target_new", "layer",
    "paraphrases", "neighbors"}. The edit is `rome`'s; it is kept, and not on."""
    fact, layer = _fact(asked), asked.get("layer")
    if not isinstance(layer, int):
        raise RomeError(f"layer {layer!r} is not a layer's number; choose one")
    request = EditRequest(fact.prompt, fact.subject, _text(asked, "target_new"))
    prompts = {name: _texts(asked, name) for name in ("paraphrases", "neighbors")}

    def progress(stage: str, found: dict) -> None:
        if stage in ("moments", "step"):
            tell({"event": stage, **found})

    steps = ROME.resolve(None, session.decoder).v_num_grad_steps
    tell({"event": "begun", "steps": steps})
    edit = locate_then_edit(session.model, session.tokenizer, request, layer=layer,
                            seed=session.seed, verification=False, progress=progress).edit
    session.counted.add(layer)
    tell({"event": "written", "told": moments_told(edit.moments)})
    yield
    check = verify(session.model, session.tokenizer, edit, retrace=False, **prompts)
    edit.numbers = {name: value for name, value in check.to_json().items() if name != "retrace"}
    tell({"event": "verified", "target_new": check.target_new, "edit": session.hold(edit).to_json(),
          **edit.numbers})


def ask_job(session: Session, asked: dict, tell: Tell) -> Iterator[None]:
    """What the model says, as it is and with edits on. asked: {"prompt", "chat": whether it is a
    question to answer rather than a text to go on with, "edits": ids}."""
    text, digests = _text(asked, "prompt"), _texts(asked, "edits")
    if not text.strip():
        raise RomeError("there is nothing to ask; give a text")
    if asked.get("chat") and (text := chat_text(session.tokenizer, text)) is None:
        raise RomeError("this model has no chat template; give a text to go on with")
    tell({"event": "unedited", **_answer(session, text)})
    yield
    if digests:
        with session.edited(digests):
            answer = _answer(session, text)
        tell({"event": "edited", **answer})


def _answer(session: Session, text: str) -> dict:
    """How the model goes on, and its first choices."""
    ids = encode(session.tokenizer, text).ids
    decoder = session.decoder
    with decoder.fast():
        last = decoder.run(decoder.enter(decoder.embed([ids])))[0, -1:]
    answer, = said(session.model, session.tokenizer, [(ids, _TOKENS)])
    return {"text": answer.text, "ended": answer.ended,
            "words": _words(session, top_words(decoder.logits(last), _WORDS))}


def _order(subject_last: int, tokens: int) -> list[int]:
    """The token that decides first, then from the end, where rows are short."""
    return [subject_last, *(i for i in reversed(range(tokens)) if i != subject_last)]


def _words(session: Session, words: list[tuple[int, float]]) -> list:
    return [[session.tokenizer.decode([word]), p] for word, p in words]


def _fact(asked: dict) -> Fact:
    """From a prompt with `{}`, or one in which the subject stands."""
    prompt, subject = _text(asked, "prompt"), _text(asked, "subject")
    return Fact(prompt, subject) if "{}" in prompt else Fact.from_text(prompt, subject)


def _text(asked: dict, name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str):
        raise RomeError(f"{name} is {value!r}; give a text")
    return value


def _texts(asked: dict, name: str) -> list[str]:
    value = asked.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RomeError(f"{name} is {value!r}; give a list of texts")
    return value
