"""What the cases of all benchmarks have in common."""

from dataclasses import dataclass, replace

from ..errors import RomeError
from ..facts import EditRequest
from ..models.tokens import with_target


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """case_id; request: what is written; relation: Wikidata's, such as P36, where it is known;
    generation: prompts for free text on the subject; context: put before whatever is asked."""

    case_id: int
    request: EditRequest
    relation: str | None = None
    generation: tuple[str, ...] = ()
    context: str = ""

    def __post_init__(self):
        if not isinstance(self.relation, str | None):
            raise RomeError(f"the relation is {self.relation!r}; give a name such as P36")

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """All that is written for this case."""
        return (self.request,)

    @property
    def question(self) -> str | None:
        """The fact as a question, where there is one."""
        return None

    def ask(self, text: str) -> str:
        """A prompt as it is asked."""
        return self.context + text

    def told(self) -> "BenchmarkCase":
        """The same case with what would be written said beforehand."""
        return replace(self, context=" ".join([*map(stated, self.requests), ""]))


def stated(request: EditRequest) -> str:
    """What is written, as a sentence."""
    return f"{with_target(request.text, request.target_new)}."
