"""Every measure of a benchmark: what it is called, and what kind of number it is."""

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
}


def measure(name: str) -> Measure:
    """Of a name that is not in the table, its own words."""
    words = name.replace("_", " ")
    return MEASURES.get(name, Measure(words, words))
