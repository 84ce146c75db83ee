"""Do the numbers that an edit was saved with hold on the model?"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..editing.edit import Edit
from ..errors import RomeError
from ..facts import EditRequest
from ..models.probabilities import first_choice, target_probabilities
from .side_effects import drift, final_states, neutral_tokens

#: what is measured -> (absolute, relative): how far two devices or types may be apart
TOLERANCES = {"P": (0.02, 0.0), "kl": (0.001, 0.1), "first_choice_changed": (1.0, 0.0),
              "perplexity_before": (0.0, 0.02), "perplexity_after": (0.0, 0.02),
              "norm_change": (0.0, 0.01)}
_NUMBERS = ("target_new_before", "target_new_after", "target_true_before", "target_true_after")


@dataclass(frozen=True)
class Claim:
    """One number of an edit: what it is of, as it was saved, as it is now, and the difference up
    to which it holds."""

    of: str
    name: str
    claimed: float
    found: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.found - self.claimed) <= self.tolerance

    def to_json(self) -> dict:
        return {**asdict(self), "holds": self.holds}


def checks_of(edit: Edit) -> list[tuple[EditRequest, dict]]:
    """[(request, what `verify` measured of it)], as the edit was saved with; none where nothing was
    measured. Raises RomeError for what `rome-mlx edit` did not write."""
    checks = edit.numbers.get("checks", [edit.numbers] if "probabilities" in edit.numbers else [])
    if not checks:
        return []
    try:
        for check in checks:
            if not check["probabilities"] or not isinstance(check["target_true"], str):
                raise ValueError("probabilities or target_true")
            numbers = [float(prompt[name]) for prompt in check["probabilities"]
                       for name in _NUMBERS]
            numbers += [float(x) for name in ("norm_change", "side_effects")
                        for x in (check.get(name) or {}).values()]
            if not np.isfinite(numbers).all() or not all(
                    isinstance(prompt[name], str) and prompt[name].strip()
                    for prompt in check["probabilities"] for name in ("prompt", "role")):
                raise ValueError("a number or a prompt")
        return list(zip(edit.requests, checks, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RomeError(f"edit.json does not hold the numbers that rome-mlx edit writes "
                        f"({type(error).__name__}: {error}); make the edit again") from error


def remeasure(model, tokenizer, edit: Edit) -> list[Claim]:
    """Every number that the edit was saved with, measured again without and with it; the model ends
    as it came. Raises RomeError where there are none, or the edit is of another model."""
    checks = checks_of(edit)
    if not checks:
        raise RomeError("the edit was saved without numbers to verify; make it again with rome-mlx "
                        "edit, without --no-verify")
    neutral = neutral_tokens(model, tokenizer)
    pairs = []  # (text, target), the new and the old answer of every prompt
    for request, check in checks:
        true = request.target_true or first_choice(model, tokenizer, request.text)
        pairs += [(prompt["prompt"], target) for prompt in check["probabilities"]
                  for target in (request.target_new, true)]

    def measured():
        return target_probabilities(model, tokenizer, pairs), final_states(model, neutral)

    before, states_before = measured()
    with edit.applied(model):
        after, states_after = measured()
    moved = drift(model, neutral, states_before, states_after)
    found = iter(zip(before, after, strict=True))
    changes = edit.norm_change(model)
    return [claim for _, check in checks
            for claim in _claims(check, lambda: next(found), moved, changes)]


def measured_again(model, tokenizer, edit: Edit) -> dict:
    """The numbers that the edit was saved with, as they are now: for `Edit.numbers`."""
    found = iter(remeasure(model, tokenizer, edit))
    checks = []
    for _, check in checks_of(edit):
        numbers = {"target_true": check["target_true"], "probabilities": [
            {"role": prompt["role"], "prompt": prompt["prompt"],
             **{name: next(found).found for name in _NUMBERS}}
            for prompt in check["probabilities"]]}
        for part in ("side_effects", "norm_change"):
            numbers[part] = {name: next(found).found for name in _measured(check, part)}
        checks.append(numbers)
    return checks[0] if len(checks) == 1 else {"checks": checks}


def _measured(check: dict, part: str) -> list[str]:
    """The names of the numbers of one part of a check that are measured again."""
    return [name for name in check.get(part) or {}
            if part == "norm_change" or name in TOLERANCES]


def _claims(check: dict, pair: Callable[[], tuple[float, float]], moved: dict[str, float],
            changes: dict[str, float]) -> Iterator[Claim]:
    """pair: the next (before, after) of the probabilities."""
    for prompt in check["probabilities"]:
        numbers = dict(zip(_NUMBERS, (*pair(), *pair()), strict=True))
        for name, value in numbers.items():
            yield _claim(prompt["prompt"], name, "P", prompt[name], value)
    for name in _measured(check, "side_effects"):
        yield _claim("a neutral text", name, name, check["side_effects"][name], moved[name])
    for path in _measured(check, "norm_change"):
        yield _claim(path, "norm_change", "norm_change", check["norm_change"][path],
                     changes.get(path, 0.0))


def _claim(of: str, name: str, kind: str, claimed: float, found: float) -> Claim:
    absolute, relative = TOLERANCES[kind]
    return Claim(of, name, float(claimed), float(found),
                 absolute + relative * abs(float(claimed)))
