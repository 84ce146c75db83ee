"""What `rome-mlx edit` tells a person: at most 40 lines of 80 columns."""

import sys
from textwrap import fill

_WIDTH = 79


class Story:
    """Printed as the work goes on; progress goes to stderr on a terminal."""

    def __init__(self, request):
        self.request = request

    def tell(self, stage: str, found: dict) -> None:
        """The stages of `locate_then_edit`."""
        if stage == "trace":
            self._located(**found)
        elif stage == "step" and sys.stderr.isatty():
            print(f"\r  step {found['step']:>2}: loss {found['total']:.3f}, "
                  f"P({self.request.target_new}) {found['probability']:.3f} ",
                  end="", file=sys.stderr, flush=True)
        elif stage == "edit":
            if sys.stderr.isatty():
                print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
            self._edited(found["edit"])

    def _located(self, trace, choice) -> None:
        print(f"\nFact     {_short(self.request.text, 58)!r}")
        print(f"Believed {trace.answer.strip()!r}, P {trace.clean_prob:.3f}; with the subject "
              f"hidden {trace.corrupted_prob:.3f}")
        print(f"\nLayer {choice.layer}")
        print(fill(choice.reason + ".", _WIDTH, initial_indent="  ", subsequent_indent="  "))
        row = trace.indirect_effect[0]
        print(f"  What {trace.window} MLPs around each layer bring back at "
              f"{trace.tokens[trace.subject_range[1] - 1].strip()!r}:")
        print(f"  0 {_sparkline(row)} {len(row) - 1}   (highest {row.max():.3f})")

    def _edited(self, edit) -> None:
        first, last = edit.losses[0], edit.losses[-1]
        layers = ", ".join(str(layer) for layer in edit.layers)
        print(f"\nEdited   {edit.method} at layer {layers}, {len(edit.losses)} steps: loss "
              f"{first['total']:.3f} → {last['total']:.3f}\n"
              f"  (target {last['nll']:.3f}, KL {last['kl']:.3f}, decay {last['decay']:.3f})")
        print(fill(f"Hyperparameters: {edit.hyperparameters.preset}.", _WIDTH,
                   initial_indent="  ", subsequent_indent="  "))

    def end(self, result) -> None:
        check = result.verification
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


def _arrow(before: float, after: float) -> str:
    return f"{before:.3f} → {after:.3f}"


def _peak(trace) -> str:
    return (f"{_short(trace.answer.strip(), 12)!r} peaks at layer {trace.decisive_layer} "
            f"({trace.decision.effect:.2f} of {trace.total_effect:.2f})")


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _sparkline(row) -> str:
    top = max(float(row.max()), 1e-9)
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * float(x) / top)))] for x in row)
