"""The page of an edit: from the fact to how to undo it."""

import dataclasses
from datetime import UTC, datetime
from html import escape

from ..tracing.decision import first_candidate, scaled_window
from .charts import loss_lines
from .layers import sentences
from .maps import heat_map, layer_bars
from .page import (
    bar,
    card,
    changed,
    code,
    definitions,
    details,
    grid,
    numbers,
    page,
    paragraph,
    section,
    table,
)

_MAPS = {"hidden": "one hidden state", "mlp": "{} MLPs around the layer",
         "attn": "{} attentions around the layer"}
_HELP = ('<p class="soft small" id="help" hidden>Point at a cell, or use the arrow keys; click or '
         "press Enter to hold it, Escape to let go.</p>")
_ROLES = {"rewrite": "Rewrite", "paraphrase": "Paraphrase", "neighbor": "Neighbor"}


def edit_page(results: list, adapter: str | None) -> str:
    """The HTML page of results that share one edit, or were written one after the other."""
    first = results[0]
    check = first.verification
    new = check.target_new.strip()
    body = [f"<h1>{escape(first.request.text)} <del>{escape(check.target_true.strip())}</del> "
            f"<ins>{escape(new)}</ins></h1>", _headline(first),
            _maps(first), _layer(first), _losses(first), _probabilities(first),
            _continuations(first)]
    if check.after is not None:
        body.append(_retrace(check))
    body.append(_side_effects(check))
    if len(results) > 1:
        body.append(_others(results[1:]))
    body += [_use(first, adapter), _provenance(results)]
    return page(f"{first.request.text} → {new}", body)


def _headline(result) -> str:
    rewrite, true = result.verification.prompts[0], result.verification.target_true.strip()
    said = ("The model now prefers the new answer." if result.verification.written
            else "The model still prefers its old answer: the fact was not written.")
    return paragraph(said) + numbers([
        (f"P({result.request.target_new.strip()}) before → after",
         f"{rewrite.target_new_before:.3f} → {rewrite.target_new_after:.3f}"),
        (f"P({true}) before → after",
         f"{rewrite.target_true_before:.3f} → {rewrite.target_true_after:.3f}"),
        ("method", result.edit.method),
        ("layer" if len(result.edit.layers) == 1 else "layers",
         ", ".join(map(str, result.edit.layers)))])


def _maps(result) -> str:
    maps = result.maps()
    answer = maps[0].answer.strip()
    return section(
        "Where the fact is",
        paragraph(f"The subject (*) is hidden by noise, which lowers P({answer}) from "
                  f"{maps[0].clean_prob:.3f} to {maps[0].corrupted_prob:.3f}. Then one state of "
                  "the clean run is put back, at one token and one layer: the fuller the "
                  f"colour, the more of P({answer}) returns."), _HELP,
        grid(*(card(f"P({answer}) with {_MAPS[one.kind].format(one.window)} put back",
                    heat_map(one, result.edit.layers),
                    paragraph(f"Empty: {one.corrupted_prob:.3f}, as with the subject hidden. "
                              f"Full colour: {one.scores.max():.3f}.", "soft small"))
               for one in maps)))


def _layer(result) -> str:
    trace = result.trace
    window = scaled_window(len(trace.deciding))
    token = trace.tokens[trace.subject_range[1] - 1].strip()
    return section(
        f"Layer {result.layer}",
        *(paragraph(sentence) for sentence in sentences(trace.decision, result.choice)),
        card(f"What {window} MLPs around each layer bring back at “{token}”, the subject's "
             "last token", layer_bars(trace, chosen=result.layer,
                                      first=first_candidate("mlp", window),
                                      label="indirect effect by layer")),
        paragraph("Pale: windows that hold layer 0, which spells the token out; they have no say "
                  "in the decision. The bar that stands out is the layer that was edited.",
                  "soft small"))


def _losses(result) -> str:
    losses, last = result.edit.losses, result.edit.losses[-1]
    return section(
        "Finding the new value",
        paragraph(f"{len(losses)} steps; at the end loss {last['total']:.3f}, of which target "
                  f"{last['nll']:.3f}, KL {last['kl']:.3f}, decay {last['decay']:.3f}."),
        card("Loss by step", loss_lines(losses)))


def _probabilities(result) -> str:
    check = result.verification
    new, true = check.target_new.strip(), check.target_true.strip()

    def pair(before: float, after: float, classes: str) -> str:
        return bar(before, classes=f"{classes} before") + bar(after, classes=classes)

    rows = [[f'<span class="soft small">{_ROLES[p.role]}</span><br>{escape(p.prompt)}',
             pair(p.target_new_before, p.target_new_after, "new"),
             pair(p.target_true_before, p.target_true_after, "true"),
             f"{escape(p.first_before.strip())} → {escape(p.first_after.strip())}"]
            for p in check.prompts]
    return section(
        "Before and after",
        paragraph("Upper bar before the edit, lower bar after. Paraphrases should follow the "
                  "rewrite; neighbors should stay as they were.", "soft small"),
        table(["Prompt", f"P({new})", f"P({true})", "First choice"], rows))


def _continuations(result) -> str:
    check, cards = result.verification, []
    texts = [(f"{_ROLES[p.role]}: {p.prompt}", p.continuation_before, p.continuation_after)
             for p in check.prompts]
    if check.chat is not None:
        texts.append((f"Asked: {check.chat['question']}", check.chat["before"],
                      check.chat["after"]))
    for title, before, after in texts:
        old, new = changed(before, after)
        same = '<p class="soft small">unchanged</p>' if old == new else ""
        cards.append(card(title, f'<p><span class="soft small">before</span> … {old}</p>',
                          f'<p><span class="soft small">after</span> … {new}</p>', same))
    return section("What the model says", grid(*cards))


def _retrace(check) -> str:
    cards = []
    for words, trace in (("Before", check.before), ("After", check.after)):
        decision = trace.decision
        cards.append(card(
            f"{words}: P({trace.answer.strip()}) is {trace.clean_prob:.3f}, with the subject "
            f"hidden {trace.corrupted_prob:.3f}",
            layer_bars(trace, chosen=decision.layer,
                       label=f"indirect effect by layer, {words.lower()}"),
            paragraph(f"peak at layer {decision.layer}"
                      f"{'' if decision.clear else ', not clear'}", "soft small")))
    return section("Traced again",
                   paragraph("What restoring the MLPs around each layer at the subject's last "
                             "token brings back of each model's own answer."), grid(*cards))


def _side_effects(check) -> str:
    parts = [definitions((f"‖ΔW‖ / ‖W‖ at {path}", f"{100 * share:.2f} %")
                         for path, share in check.norm_change.items())]
    if (moved := check.side_effects) is not None:
        parts.append(numbers([
            ("of next words change on text about other things",
             f"{moved['first_choice_changed']:.1f} %"),
            ("KL divergence there, nats per token", f"{moved['kl']:.4f}"),
            ("perplexity there, before → after",
             f"{moved['perplexity_before']:.2f} → {moved['perplexity_after']:.2f}")]))
        parts.append(paragraph(f"Measured over {moved['tokens']} tokens. A fact that follows from "
                               "the edited one is usually not changed along with it.",
                               "soft small"))
    return section("Side effects", *parts)


def _others(results: list) -> str:
    rows = []
    for result in results:
        rewrite, true = result.verification.prompts[0], result.verification.target_true.strip()
        rows.append([f"{escape(rewrite.prompt)} → {escape(result.request.target_new.strip())}",
                     bar(rewrite.target_new_before, classes="new before")
                     + bar(rewrite.target_new_after, classes="new"),
                     bar(rewrite.target_true_before, classes="true before")
                     + bar(rewrite.target_true_after, classes="true"), escape(true)])
    return section(f"{len(results)} more requests", table(
        ["Request", "P(new target)", "P(old answer)", "Old answer"], rows))


def _use(result, adapter: str | None) -> str:
    model = result.edit.model.get("path") or "MODEL"
    where = adapter or "DIRECTORY"
    parts = []
    if adapter is None:
        parts.append(paragraph("The edit was not saved; rome-mlx edit --save-path DIRECTORY, or "
                               "result.edit.save(DIRECTORY), saves it."))
    parts += [
        paragraph("With mlx-lm: give the adapter, or leave it out to be without the edit."),
        code(f"mlx_lm.generate --model {model} --adapter-path {where} \\\n"
             f"  --ignore-chat-template --prompt {result.request.text!r}"),
        paragraph("In Python:"),
        code("import rome_mlx as rm\n\n"
             f"model, tokenizer = rm.load({model!r})\n"
             f"edit = rm.load_edit({where!r})\n"
             "edit.apply(model)\nedit.revert(model)   # every weight as before, bit for bit")]
    return section("Apply and undo", *parts)


def _provenance(results: list) -> str:
    edit = results[0].edit
    trace = results[0].trace
    pairs = [("model", edit.model.get("path")), ("type", edit.model.get("type")),
             ("computed in", edit.model.get("dtype")), ("method", edit.method),
             ("layers", ", ".join(map(str, edit.layers))), ("seed", edit.seed),
             ("noise", f"{trace.noise}, {trace.samples} samples"),
             *edit.versions.items(),
             ("written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))]
    chosen = dataclasses.asdict(edit.hyperparameters) if edit.hyperparameters else {}
    return section(
        "Provenance", definitions(pairs),
        details("Hyperparameters", definitions(chosen.items())),
        details("Context templates", code("\n".join(edit.context_templates))))
