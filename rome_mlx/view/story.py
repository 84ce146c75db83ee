"""What `rome-mlx edit` tells a person: at most 40 lines of 80 columns."""

import sys
import time
from textwrap import fill

from ..editing.layer_choice import decisive
from ..moments.lookup import moments_told
from .layers import layers_told

_WIDTH = 79


class Story:
    """Printed as the work goes on; progress goes to stderr on a terminal."""

    def __init__(self, request, steps: int):
        """steps: the most that the optimisation takes."""
        self.request, self.steps, self.began = request, steps, 0.0

    def tell(self, stage: str, found: dict) -> None:
        """The stages of `locate_then_edit`."""
        if stage == "trace":
            self._located(**found)
        elif stage == "step" and sys.stderr.isatty():
            self._step(**found)
        elif stage == "edit":
            if sys.stderr.isatty():
                print("\r" + " " * _WIDTH + "\r", end="", file=sys.stderr)
            self._edited(found["edit"])

    def _located(self, traces, choice) -> None:
        print(f"\nFact     {_short(self.request.text, 58)!r}")
        if not traces:
            print(layers_told(None, choice))
            return
        trace = traces[0]
        print(f"Believed {trace.answer.strip()!r}, P {trace.clean_prob:.3f}; with the subject "
              f"hidden {trace.corrupted_prob:.3f}\n")
        print(layers_told(decisive(traces), choice))
        row = trace.deciding_effect
        print(f"  What {trace.window} MLPs around each layer bring back at "
              f"{trace.tokens[trace.subject_range[1] - 1].strip()!r}:")
        print(f"  0 {_sparkline(row)} {len(row) - 1}   (highest {row.max():.3f})")

    def _step(self, step, total, probability, **_) -> None:
        if step == 0:
            self.began = time.monotonic()
        left = (time.monotonic() - self.began) / max(1, step) * (self.steps - 1 - step)
        line = (f"  step {step:>2}: loss {total:.3f}, "
                f"{_short(f'P({self.request.target_new.strip()})', 30)} {probability:.3f}"
                f"{f', at most {left:.0f} s left' if step else '':26}")
        print("\r" + line, end="", file=sys.stderr, flush=True)

    def _edited(self, edit) -> None:
        first, last = edit.losses[0], edit.losses[-1]
        layers = ", ".join(str(layer) for layer in edit.layers)
        print(f"\nEdited   {edit.method} at layer{'s' * (len(edit.layers) > 1)} "
              f"{layers}, {len(edit.losses)} steps: loss "
              f"{first['total']:.3f} → {last['total']:.3f}\n"
              f"  (target {last['nll']:.3f}, KL {last['kl']:.3f}, decay {last['decay']:.3f})")
        for told in (moments_told(edit.moments), _null_space(edit.details.get("null_space")),
                     _fit(edit.details.get("fit")),
                     f"Hyperparameters: {edit.hyperparameters.preset}"):
            if told:
                print(fill(f"{told}.", _WIDTH, initial_indent="  ", subsequent_indent="  "))

    def end(self, result) -> None:
        check = result.verification
        if check is None:
            print("\nNot verified. The model itself is as it was.")
            return
        new, true = check.target_new.strip(), check.target_true.strip()
        print(f"\n{'':10}{_short(f'P({new})', 18):<20}{_short(f'P({true})', 18):<20}first choice")
        for p in check.prompts:
            print(f"{p.role}: {_short(p.prompt, 66)}")
            print(f"{'':10}{_arrow(p.target_new_before, p.target_new_after):<20}"
                  f"{_arrow(p.target_true_before, p.target_true_after):<20}"
                  f"{_short(p.first_before, 12)} → {_short(p.first_after, 12)}")
        rewrite = check.prompts[0]
        print(f"\nBefore   …{_short(rewrite.continuation_before, 66)}")
        print(f"After    …{_short(rewrite.continuation_after, 66)}")
        if check.chat is not None:
            print(f"Asked    {_short(check.chat['question'], 66)}\n"
                  f"  before {_short(check.chat['before'], 67)}\n"
                  f"  after  {_short(check.chat['after'], 67)}")
        if check.after is not None:
            print(f"Traced again: {_peak(check.before)} before,\n"
                  f"  {_peak(check.after)} after")
        change = max(check.norm_change.values())
        print(f"Weight changed by {100 * change:.2f} % of its norm; the model itself is as it "
              "was.")
        if check.side_effects is not None:
            print("On text about other things {first_choice_changed:.1f} % of next words change, "
                  "KL {kl:.4f}.".format(**check.side_effects))


def _fit(fit: float | None) -> str | None:
    return fit and (f"The subject begins the text, where its key fits by {fit:.2f} of what it does "
                    "elsewhere: the update is r-rome's, which leaves the bare prompt as it is; put "
                    "words before the subject in the prompt to write that too")


def _null_space(spaces: list[dict] | None) -> str | None:
    """How large AlphaEdit's null space was, in words."""
    if not spaces:
        return None
    layers, sizes = (", ".join(f"{space[name]:,}" for space in spaces)
                     for name in ("layer", "directions"))
    return (f"Null space at layer{'s' * (len(spaces) > 1)} {layers}: {sizes} of "
            f"{spaces[0]['of']:,} directions, {100 * max(s['energy'] for s in spaces):.2g} % of "
            "the keys' energy at most")


def _arrow(before: float, after: float) -> str:
    return f"{before:.3f} → {after:.3f}"


def _peak(trace) -> str:
    decision = trace.decision
    return (f"{_short(trace.answer.strip(), 12)!r} peaks at layer {decision.layer} "
            f"({decision.effect:.2f} of {trace.total_effect:.2f}"
            f"{'' if decision.clear else ', not clear'})")


def _short(text: str, width: int) -> str:
    text = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def _sparkline(row) -> str:
    top = max(float(row.max()), 1e-9)
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * float(x) / top)))] for x in row)
