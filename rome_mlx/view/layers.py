"""The decisive layer and the layer to edit, said alike by every command and page."""

from textwrap import fill


def sentences(decision, choice) -> list[str]:
    """What the trace or profile decides, and where is edited, each with its reason.

    decision: a Decision, None where nothing was traced; choice: a LayerChoice, None where nothing
    is edited.
    """
    said = []
    if decision is not None:
        named = f"{decision.layer}" if decision.clear else "none that is clear"
        said.append(f"Decisive layer: {named}; {decision.reason}.")
    if choice is not None:
        said.append(f"Layer to edit: {choice.layer}, {choice.how}; {choice.reason}.")
    return said


def layers_told(decision, choice) -> str:
    """The sentences, at most 79 columns wide."""
    return "\n".join(fill(line, 79, subsequent_indent="  ") for line in sentences(decision, choice))
