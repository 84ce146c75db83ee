"""Every measure of a benchmark: what it is called, and what kind of number it is."""

from collections.abc import Iterable
from typing import NamedTuple


class Measure(NamedTuple):
    """label: beside the paper's tables; words: on a page; share: percent of prompts or target
    tokens, from 0 to 100; decimals: how many are worth showing."""

    label: str
    words: str
    share: bool = False
    decimals: int = 1


MEASURES = {
    "score": Measure("S", "S: harmonic mean of rewrites, paraphrases and neighbors", True),
    "rewrite_success": Measure("ES", "ES: rewrites, new answer likelier", True),
    "paraphrase_success": Measure("PS", "PS: paraphrases, new answer likelier", True),
    "neighborhood_success": Measure("NS", "NS: neighbors, true answer likelier", True),
    "neighborhood_kept": Measure(
        "NS kept", "NS kept: of neighbors with the true answer likelier before", True),
    "neighborhood_gained": Measure(
        "NS gained", "NS gained: of neighbors with the new answer likelier before", True),
    "neighborhood_known_success": Measure(
        "NS known", "NS known: of neighbors whose true answer was the first choice before", True),
    "neighborhood_known_acc": Measure(
        "acc known", "Known neighbors whose true answer is still the first choice", True),
    "rewrite_magnitude": Measure("EM", "EM: rewrites, points of probability"),
    "paraphrase_magnitude": Measure("PM", "PM: paraphrases, points of probability"),
    "neighborhood_magnitude": Measure("NM", "NM: neighbors, points of probability"),
    "rewrite_acc": Measure("acc", "Rewrite accuracy", True),
    "paraphrase_acc": Measure("acc para", "Paraphrase accuracy", True),
    "neighborhood_acc": Measure("acc neigh", "Neighbor accuracy", True),
    "portability": Measure("portable", "Portability accuracy", True),
    "ngram_entropy": Measure("GE", "GE: entropy of n-grams in free text, 100 × bits"),
    "reference_score": Measure("RS", "RS: likeness to texts on the new answer, 100 × cosine"),
    "kl_drift": Measure("KL", "KL on a neutral text, nats per token", decimals=4),
    **{f"wild_{group}_{name}": Measure(f"{short} {name}", f"{words}: {what}", name != "gap")
       for group, short, words in (
           ("rewrite", "free", "Free text after the prompt"),
           ("paraphrase", "para", "Free text after paraphrases"),
           ("chat", "chat", "Answers to the question"))
       for name, what in (
           ("forced", "every token the first choice, the ones before given"),
           ("said", "the answer is said"), ("gap", "forced less said, points"),
           ("exact", "the answer alone is said"), ("ended", "the text ends by itself"))},
    "distractor_success": Measure(
        "distract", "Neighbors after the edit's statement, true answer likelier", True),
    "distractor_kept": Measure("dis kept", "Of those so before", True),
    "distractor_gained": Measure("dis gain", "Of those not so before", True),
    "relations_kept": Measure(
        "rel kept", "The subject's other relations with the first choice of before", True),
    "relations_taken": Measure("rel taken", "Those that now give the edit's answer", True),
    "negation_success": Measure(
        "denied", "The denied fact: the new answer less likely than the true one", True),
    "negation_kept": Measure("den kept", "Of those so before", True),
    "negation_gained": Measure("den gain", "Of those not so before", True),
    "reversal_success": Measure(
        "reverse", "Turned round: the subject likelier after the new object than the true", True),
    "reversal_gain": Measure("rev gain", "What a token of it gained there, nats", decimals=2),
    "hops_said": Measure("hops", "Chains: what follows from the edit is said", True),
    **{f"hops_{n}_said": Measure(f"{n} hops", f"Chains of {n} hops: said", True)
       for n in (2, 3, 4)},
    "hops_known_said": Measure("of known", "Said, of chains whose old end was known", True),
    "hops_steps": Measure("steps", "Chains whose single steps are all right", True),
    "hops_steps_said": Measure("of steps", "Said, of chains whose steps are all right", True),
    "hops_likelier": Measure("likelier", "Chains: the new end likelier than the old", True),
    "hops_old": Measure("old end", "Chains: the old end is said", True),
    "ability_choices": Measure("choices", "Right of four answers to facts of our own", True),
    "ability_kept": Measure("cho kept", "Of those right before", True),
    "ability_gained": Measure("cho gain", "Of those wrong before", True),
    "ability_perplexity": Measure("ppl", "Perplexity on a neutral text", decimals=2),
    "ability_perplexity_ratio": Measure("ppl x", "Perplexity, times the unedited", decimals=3),
}

#: the questions that measures answer, and how the names of a question's begin; of none: the first
PARTS = {"Of two given answers": (), "Said in free text": ("wild_",),
         "What else moves": ("distractor_", "relations_", "negation_", "reversal_"),
         "Consequences": ("hops_",), "General ability": ("ability_",)}


def in_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """{question: its measures}, without questions that none of the names answers."""
    first, *others = PARTS
    found: dict[str, list[str]] = {title: [] for title in PARTS}
    for name in names:
        found[next((title for title in others if name.startswith(PARTS[title])), first)].append(
            name)
    return {title: some for title, some in found.items() if some}


def measure(name: str) -> Measure:
    """Of a name that is not in the table, its own words."""
    words = name.replace("_", " ")
    return MEASURES.get(name, Measure(words, words))
