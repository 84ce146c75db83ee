"""What a benchmark's measures say, in sentences."""

from ..evaluation.measures import measure
from .compare import interval, number

#: measures that a sentence is about -> the sentence; {name} is a mean with its interval
_SENTENCES = [
    (("rewrite_success", "paraphrase_success"),
     "The new answer is likelier than the old on {rewrite_success} of rewrites and "
     "{paraphrase_success} of paraphrases."),
    (("neighborhood_kept",),
     "Of the neighbors that were right before, {neighborhood_kept} still are."),
    (("rewrite_acc", "portability"),
     "{rewrite_acc} of the new answers' tokens are the first choice, and {portability} of "
     "those of questions that follow from them."),
    (("wild_rewrite_forced", "wild_rewrite_said", "wild_rewrite_gap", "wild_rewrite_exact"),
     "With its earlier tokens given the whole answer is the first choice on {wild_rewrite_forced} "
     "of the prompts; left to itself the model says it on {wild_rewrite_said}, a gap of "
     "{wild_rewrite_gap}, and says nothing else on {wild_rewrite_exact}."),
    (("wild_paraphrase_forced", "wild_paraphrase_said"),
     "On paraphrases: {wild_paraphrase_forced} with the tokens given, {wild_paraphrase_said} "
     "said."),
    (("wild_chat_forced", "wild_chat_said"),
     "Asked as a question in a chat: {wild_chat_forced} with the tokens given, "
     "{wild_chat_said} said."),
    (("distractor_kept",),
     "With the edit's statement in front, {distractor_kept} of the neighbors that were right "
     "there are right still."),
    (("relations_kept", "relations_taken"),
     "The subject's other relations begin as before on {relations_kept}, and with the edit's "
     "answer on {relations_taken}."),
    (("negation_success",),
     "Where the fact is denied, the new answer is less likely than the true one on "
     "{negation_success}."),
    (("reversal_success",),
     "Turned round, the new object leads to the subject on {reversal_success}."),
    (("hops_said", "hops_old"),
     "What follows from the edit is said on {hops_said} of the chains, the old end on "
     "{hops_old}."),
    (("ability_choices",),
     "Of questions on other things {ability_choices} are answered right."),
]


def reading(measures: dict[str, dict]) -> list[str]:
    """A sentence for what was measured, the paper's first. measures: {name: {"mean", "ci95"}}."""
    shown = {name: f"{number(name, value['mean'])}{' %' if measure(name).share else ' points'} "
                   f"{interval(name, value)}" for name, value in measures.items()}
    return [text.format(**shown) for names, text in _SENTENCES if set(names) <= set(shown)]
