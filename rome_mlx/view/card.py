"""A model card, README.md as the hub reads it, for a saved edit or a model that one was fused into.

What the edit says of itself may be somebody else's: in the text every character that Markdown or
HTML could take for its own is written as a number, and the metadata is written by the hub's client.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from ..editing.adapter import CARD
from ..editing.edit import Edit
from ..editing.fuse import FUSED
from ..editing.saved import load_edit
from ..errors import RomeError
from ..evaluation.remeasure import checks_of
from ..facts import EditRequest
from ..models.loading import DEFAULT_MODEL
from ..storage.files import check_writable, read_json, write_whole

_DEFAULT_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MOST = 20  # facts that are listed
_SPECIAL = re.compile(r"[!#$&*:<>@\[\\\]^_`{|}~]|(?<=www)\.", re.IGNORECASE)

_USE = {"adapter": """\
It is an mlx-lm adapter; MODEL is the base model, DIR this directory.

```
mlx_lm.generate --model MODEL --adapter-path DIR --ignore-chat-template --prompt "..."
rome-mlx serve --model MODEL --edits DIR
```

```python
import rome_mlx as rm

model, tokenizer = rm.load("MODEL")
rm.load_edit("DIR").apply(model)
```
""", "codes": """\
It changes codes of the quantized weights of MODEL, the base model, and no others; DIR is this
directory.

```
rome-mlx edits fuse DIR --model MODEL --save-path OUT      # a whole model, as large as MODEL
rome-mlx serve --model MODEL --edits DIR
```

```python
import rome_mlx as rm

model, tokenizer = rm.load("MODEL", dtype="stored")
rm.load_edit("DIR").apply(model)
```
""", "model": """\
It is a whole model; DIR is this directory.

```
mlx_lm.generate --model DIR --ignore-chat-template --prompt "..."
```
"""}
_UNDO = {"adapter": "Leave the adapter out, or `edit.revert(model)`: every weight is the one "
                    "before, bit for bit.",
         "codes": "`edit.revert(model)`: every code is the one before. Of a fused model, use "
                  "MODEL.",
         "model": "Use the base model. `rome-mlx diff MODEL DIR --save-path OUT`, MODEL the base "
                  "model, finds the edit that takes this one back."}
_WARNING = """\
An edit changes what the model says after some prompts. It does not teach the fact: what follows
from it may not follow, other wordings may still give the old answer, and other facts may have
moved. What it says need not be true, and edits can be misused to make a model say what is false.
Before you rely on this one, measure it yourself.
"""


@dataclass(frozen=True)
class _About:
    """kind: adapter, codes or model; changes: {module path: ‖ΔW‖ / ‖W‖}; checks: [(request, what
    was measured of it)]; model: path or id of the base."""

    kind: str
    method: str
    requests: list[EditRequest]
    changes: dict[str, float]
    checks: list[tuple[EditRequest, dict]]
    model: str | None


def write_card(directory: str | Path, license: str | None = None) -> Path:
    """Write `directory`/README.md for the saved edit or fused model in it, in place of one that is
    there; returns its path.

    license: the hub's identifier, such as apache-2.0. Raises RomeError where the directory holds
    neither, or for what is no such identifier.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise RomeError(f"the license {license!r} is none of the hub's identifiers, which are such "
                        "as apache-2.0 or mit")
    path = Path(directory)
    about = _fused(path) if (path / FUSED).is_file() else _saved(path)
    check_writable(path / CARD)
    write_whole(path / CARD, card(about, license))
    return path / CARD


def card(about: _About, license: str | None) -> str:
    """The text of a card, front matter first."""
    base = base_model(about.model)
    method = about.method if re.fullmatch(r"[a-z0-9-]+", about.method) else "edit"
    relation = {"adapter": "adapter", "codes": "adapter", "model": "finetune"}[about.kind]
    data = ModelCardData(
        base_model=base, base_model_relation=relation if base else None, library_name="mlx",
        license=license or "unknown", pipeline_tag="text-generation",
        tags=["mlx", "rome-mlx", "model-editing", method])
    return "\n".join([
        "---", data.to_yaml().strip(), "---", "", f"# {_title(about)}", "", *_what(about, base),
        "", "## Evidence", "", *_evidence(about), "", "## Use", "", _USE[about.kind],
        "## Undo", "", _UNDO[about.kind], "", "## Before you use it", "", _WARNING,
        "## License", "", escaped(license) if license else
        "unknown: fill in (`rome-mlx edits card DIR --license ID`). An edit is made from the base "
        "model, whose licence may bind it.", ""])


def base_model(path: str | None) -> str | None:
    """The hub's name of a model that was loaded from there; of a directory of unknown origin, the
    directory's own name."""
    name = Path(path or "").name
    if found := re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", path or "", re.ASCII):
        return f"{found[1]}/{found[2]}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path or "", re.ASCII) and not (path or "").startswith("."):
        return path
    if name.startswith(f"{Path(DEFAULT_MODEL).stem}-v"):
        return _DEFAULT_ON_HUB
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or None


def escaped(text: str) -> str:
    """The text on one line, as Markdown that shows every character of it as it is."""
    shown = "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", shown)


def _saved(path: Path) -> _About:
    edit = load_edit(path)
    changes = {name: delta.norm / max(edit.fingerprints[name][2], 1e-30)
               for name, delta in edit.deltas.items()}
    return _About("codes" if edit.in_codes else "adapter", edit.method, edit.requests, changes,
                  checks_of(edit), edit.model.get("path"))


def _fused(path: Path) -> _About:
    found = read_json(path / FUSED)
    try:
        requests = [EditRequest(**request) for request in found["requests"]]
        edit = Edit(str(found["method"]), requests, {}, [],
                    numbers=dict(found["numbers"]))
        changes = {str(name): float(x) for name, x in found["norm_change"].items()}
        return _About("model", edit.method, requests, changes, checks_of(edit),
                      str(found["model"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RomeError(f"{str(path / FUSED)!r} does not say what was written "
                        f"({type(error).__name__}: {error}); fuse the edit again") from error


def _title(about: _About) -> str:
    first = about.requests[0]
    more = f" and {len(about.requests) - 1} more" if len(about.requests) > 1 else ""
    return f"An edited fact: {escaped(first.subject)} → {escaped(first.target_new)}{more}"


def _what(about: _About, base: str | None) -> list[str]:
    origin, name = escaped(base or "an unnamed model"), Path(about.model or "").name
    if base and "/" not in base:
        origin += ", a local directory: put its hub id into base&#95;model above"
    elif base == _DEFAULT_ON_HUB != about.model:
        origin += f", as {escaped(name)}"
    lines = [f"Base model: {origin}.", "",
             f"So that the model says the new answers below, {escaped(about.method)} changed these "
             "weights:", "", "| weight | change, of its norm |", "|---|---|"]
    lines += [f"| {escaped(name)} | {x:.2%} |" for name, x in about.changes.items()]
    lines += ["", "| prompt | new answer |", "|---|---|"]
    lines += [f"| {escaped(request.text)} | {escaped(request.target_new)} |"
              for request in about.requests[:_MOST]]
    if (more := len(about.requests) - _MOST) > 0:
        lines += ["", f"And {more} more."]
    return lines


def _evidence(about: _About) -> list[str]:
    if not about.checks:
        return ["Nothing was measured."]
    lines = ["Probabilities without → with the edit"
             + (", measured before it was fused" if about.kind == "model" else "") + ".", "",
             "| | prompt | new answer | old answer |", "|---|---|---|---|"]
    for request, check in about.checks[:_MOST]:
        answers = request.target_new, request.target_true or check["target_true"]
        for prompt in check["probabilities"]:
            cells = (f"{escaped(answer)} {float(prompt[f'{name}_before']):.3f} → "
                     f"{float(prompt[f'{name}_after']):.3f}" for answer, name in
                     zip(answers, ("target_new", "target_true"), strict=True))
            lines.append(f"| {escaped(prompt['role'])} | {escaped(prompt['prompt'])} | "
                         f"{' | '.join(cells)} |")
    for _, check in about.checks[:1]:
        lines += ["", *(f"- {words}: {float(check['side_effects'][name]):.3g}" for name, words in (
            ("first_choice_changed", "next words that change on text about other things, in %"),
            ("kl", "KL there, in nats a token"), ("perplexity_before", "perplexity without"),
            ("perplexity_after", "perplexity with")) if name in (check.get("side_effects") or {}))]
    if about.kind != "model":
        lines += ["", "`rome-mlx edits verify DIR` measures all of it again."]
    return lines
