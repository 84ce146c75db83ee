"""What is asked and what is to be written: Fact and EditRequest."""

from dataclasses import dataclass

from .errors import RomeError


@dataclass(frozen=True)
class Fact:
    """A prompt with one `{}` where the subject goes, e.g. ("{} is located in", "The Louvre").

    `attribute` is the answer that the model is expected to give, if it is known.
    """

    prompt: str
    subject: str
    attribute: str | None = None

    def __post_init__(self):
        _check_prompt(self.prompt, self.subject)

    @classmethod
    def from_text(cls, text: str, subject: str, attribute: str | None = None) -> "Fact":
        """From a literal text; the subject is its first occurrence there."""
        if not subject.strip() or subject not in text:
            raise RomeError(f"the subject {subject!r} does not occur in {text!r}; "
                            "write it as it stands in the text")
        before, after = text.split(subject, 1)
        if "{}" in before + after:
            raise RomeError(f"the text {text!r} has a '{{}}' beside its subject; remove it")
        return cls(before + "{}" + after, subject, attribute)

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.prompt.replace("{}", self.subject)

    @property
    def subject_span(self) -> tuple[int, int]:
        """Characters [start, end) of the subject in `text`."""
        start = self.prompt.index("{}")
        return start, start + len(self.subject)


@dataclass(frozen=True)
class EditRequest:
    """Write `target_new` as the continuation of `prompt` with `subject` in its `{}`."""

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None

    def __post_init__(self):
        _check_prompt(self.prompt, self.subject)
        if not isinstance(self.target_new, str) or not self.target_new.strip():
            raise RomeError(f"the target {self.target_new!r} is empty; "
                            "give the words to write, such as 'Rome'")

    @property
    def fact(self) -> Fact:
        """The same prompt and subject, to trace."""
        return Fact(self.prompt, self.subject)

    @property
    def text(self) -> str:
        return self.fact.text

    @property
    def subject_span(self) -> tuple[int, int]:
        return self.fact.subject_span


def _check_prompt(prompt: str, subject: str) -> None:
    if not isinstance(subject, str) or not subject.strip():
        raise RomeError(f"the subject {subject!r} is empty; name the subject of the fact, "
                        "such as 'The Eiffel Tower'")
    if not isinstance(prompt, str) or (count := prompt.count("{}")) != 1:
        if isinstance(prompt, str) and count == 0 and subject in prompt:
            example = prompt.replace(subject, "{}", 1)
        else:
            example = "{} is located in the city of"
        found = f"has {count} '{{}}'" if isinstance(prompt, str) else "is not a text"
        raise RomeError(f"the prompt {prompt!r} {found}, but needs exactly one, where the "
                        f"subject goes; for example {example!r}")
