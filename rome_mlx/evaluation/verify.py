"""Did the edit do what it should, and what else did it change?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ..editing.edit import Edit
from ..errors import RomeError
from ..facts import EditRequest
from ..models.decoder import Decoder
from ..models.kept import Kept
from ..models.probabilities import chat_text, first_choice, said, target_probabilities
from ..models.tokens import encode
from ..tracing.decision import scaled_window
from ..tracing.trace import Trace, trace
from .side_effects import drift, final_states, kept_states, neutral_tokens

_TOKENS, _ANSWER_TOKENS = 12, 24  # generated at most after a prompt, and under the chat template


@dataclass(frozen=True)
class PromptCheck:
    """One prompt before and after: probabilities of both targets, the first choice, a greedy
    continuation. role: rewrite, paraphrase or neighbor."""

    role: str
    prompt: str
    target_new_before: float
    target_new_after: float
    target_true_before: float
    target_true_after: float
    first_before: str
    first_after: str
    continuation_before: str
    continuation_after: str


@dataclass(frozen=True)
class Verification:
    """target_true: what the unedited model said; prompts: the rewrite first; chat: question and
    answers before and after, for an instruction-tuned model; retrace: the old answer's trace in
    the old model and the new answer's in the edited one; norm_change: ‖ΔW‖ / ‖W‖ a
    weight; side_effects: what changed on neutral text, see `drift`."""

    target_new: str
    target_true: str
    prompts: list[PromptCheck]
    chat: dict | None
    before: Trace | None
    after: Trace | None
    norm_change: dict[str, float]
    side_effects: dict[str, float] | None

    @property
    def written(self) -> bool:
        """Whether the model now prefers the new target on the prompt."""
        rewrite = self.prompts[0]
        return rewrite.target_new_after > rewrite.target_true_after

    def to_json(self) -> dict:
        return {"target_true": self.target_true, "written": self.written,
                "probabilities": [asdict(prompt) for prompt in self.prompts], "chat": self.chat,
                "retrace": {"before": self.before and self.before.to_json(),
                            "after": self.after and self.after.to_json()},
                "norm_change": self.norm_change, "side_effects": self.side_effects}


def verify(model, tokenizer, edit: Edit, *, paraphrases: Sequence[str] = (),
           neighbors: Sequence[str] = (), request: EditRequest | None = None,
           question: str | None = None, retrace: bool = True, side_effects: bool = True,
           before: Trace | None = None, **trace_options) -> Verification:
    """Measure one of an edit's requests, by default the first, with and without the edit; the
    model ends as it came.

    paraphrases: other ways to ask, which should give the new target; neighbors: prompts on other
    subjects, which should not change; question: asked under the chat template, by default the
    prompt as a question; retrace, side_effects: whether to trace again and to see what changes on
    neutral text; trace_options: for the re-trace, by default what the decisive layer is read
    from: windows of MLPs at the subject's last token; before: that trace of the unedited model,
    where it is at hand. Raises RomeError for an empty prompt.
    """
    for prompt in (*paraphrases, *neighbors):
        if not prompt.strip():
            raise RomeError("a paraphrase or neighbor is empty; give a prompt to continue")
    request = edit.request if request is None else request
    prompts = [("rewrite", request.text), *(("paraphrase", p) for p in paraphrases),
               *(("neighbor", p) for p in neighbors)]
    texts = [prompt for _, prompt in prompts]
    question = question or f"Complete the sentence: {request.text} ..."
    neutral = neutral_tokens(model, tokenizer)
    options = {"kind": "mlp", "window": scaled_window(len(Decoder(model).layers)),
               "token_range": "subject_last", **trace_options}

    with set_aside(model, edit):
        kept = Kept(model, tokenizer)
        true = request.target_true or (before.answer_id if before else
                                       first_choice(model, tokenizer, request.text))
        asked = {"texts": texts, "targets": [request.target_new, true], "question": question}
        about = asked | {"tokens": [_TOKENS, _ANSWER_TOKENS],
                         "chat": chat_text(tokenizer, question)}
        unedited = kept.get("answers", about, request.text,
                            lambda: _answers(model, tokenizer, **asked))
        if retrace:
            before = before or trace(model, tokenizer, request.fact, **options)
        if side_effects:
            neutral_before = kept_states(kept, model, neutral)
        with edit.applied(model):
            edited = _answers(model, tokenizer, **asked)
            after = trace(model, tokenizer, request.fact, **options) if retrace else None
            moved = drift(model, neutral, neutral_before,
                          final_states(model, neutral)) if side_effects else None
        norm_change = edit.norm_change(model)
    checks = [PromptCheck(role, prompt, *(x for pair in zip(b, a, strict=True) for x in pair))
              for (role, prompt), b, a in zip(prompts, unedited["prompts"], edited["prompts"],
                                              strict=True)]
    chat = None if unedited["chat"] is None else {
        "question": question, "before": unedited["chat"], "after": edited["chat"]}
    return Verification(request.target_new,
                        true if isinstance(true, str) else tokenizer.decode([true]), checks, chat,
                        before if retrace else None, after, norm_change, moved)


def _answers(model, tokenizer, texts: list[str], targets: list, question: str) -> dict:
    """What the model says now: of each text the targets' probabilities, the first choice and how
    it goes on, and the answer to the question under the chat template, where there is one."""
    both = target_probabilities(model, tokenizer, [(text, target) for text in texts
                                                   for target in targets])
    asked = [(encode(tokenizer, text).ids, _TOKENS) for text in texts]
    if chat := chat_text(tokenizer, question):
        asked.append((encode(tokenizer, chat).ids, _ANSWER_TOKENS))
    answers = said(model, tokenizer, asked)
    return {"prompts": [[*both[2 * i: 2 * i + 2], tokenizer.decode([one.first]), one.text]
                        for i, one in enumerate(answers[:len(texts)])],
            "chat": answers[-1].text if chat else None}


@contextmanager
def set_aside(model, edit: Edit) -> Iterator[None]:
    """The model with this edit set aside, if it is applied."""
    was_applied = edit.is_applied(model)
    if was_applied:
        edit.revert(model)
    try:
        yield
    finally:
        if was_applied:
            edit.apply(model, force=True)
