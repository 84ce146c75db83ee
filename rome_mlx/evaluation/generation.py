"""Free text after an edit: is it still language (GE), and is it on the new target (RS)?

As the ROME authors' code: sampled among the 5 likeliest tokens, 100 tokens with the prompt, which
is part of the text (ROME paper, section 3.3 and appendix E).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..models.sampling import continued, likeliest
from ..models.tokens import encode
from ..storage.files import read_json

LENGTH, TOP_K = 100, 5
_NGRAMS = ((2, 2 / 3), (3, 4 / 3))  # (n, weight)
_FILES = ("attribute_snippets.json", "idf.npy", "tfidf_vocab.json")


def generate(model, tokenizer, prompts: Sequence[str], seed: int = 0,
             length: int = LENGTH) -> list[str]:
    """Each prompt continued to `length` tokens in all, sampled among the likeliest 5, seeded."""
    rows = [encode(tokenizer, prompt).ids for prompt in prompts]
    return [_clean(tokenizer.decode(ids, skip_special_tokens=True))
            for ids in continued(model, rows, length, likeliest(TOP_K, seed))]


def _clean(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def ngram_entropy(texts: Sequence[str]) -> float:
    """GE: the mean over texts of the weighted mean of 2- and 3-gram entropies, in bits × 100."""
    return 100 * float(np.mean([_entropy(text) for text in texts]))


def words_of(text: str) -> list[str]:
    """Sentences by Punkt without training, and their words by NLTK's tokenizer.

    `nltk.word_tokenize`, which the authors use, has a Punkt trained on English, which has to be
    downloaded; ours ends a sentence at "St." too. Of 220 texts of the default model 97 % have the
    same words with both, and GE differs by 0.01 in the mean (by 6.3 for one text at most); without
    sentences it would be 3.1 lower.
    """
    import nltk  # which takes as long as a measurement: only where there are texts

    return [word for sentence in nltk.tokenize.punkt.PunktSentenceTokenizer().tokenize(text)
            for word in nltk.word_tokenize(sentence, preserve_line=True)]


def _entropy(text: str) -> float:
    words = words_of(text)
    total = 0.0
    for n, weight in _NGRAMS:
        counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)),
                                           strict=False)).values()), np.float64)
        shares = counts / counts.sum()
        total -= weight * float(shares @ np.log2(shares))
    return total / len(_NGRAMS)


class References:
    """The authors' reference texts, in a directory with their three files.

    attribute_snippets.json: texts on subjects that have an attribute; idf.npy and
    tfidf_vocab.json: the weights of words. Raises RomeError where one is missing or not that.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        for name in _FILES:
            if not (self.directory / name).is_file():
                raise RomeError(f"{str(directory)!r} has no {name}; give a directory with "
                                f"{', '.join(_FILES)} of the ROME authors")
        snippets, idf, vocabulary = (self.directory / name for name in _FILES)
        try:
            self.idf = np.load(idf, allow_pickle=False)
            self.vocabulary = {word: int(i) for word, i in read_json(vocabulary).items()}
            self.texts = {(entry["relation_id"], entry["target_id"]):
                          [sample["text"] for sample in entry["samples"]]
                          for entry in read_json(snippets)}
            if max(self.vocabulary.values()) >= len(self.idf) or self.idf.ndim != 1:
                raise ValueError("words without a weight")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RomeError(f"{str(directory)!r} does not hold the ROME authors' files "
                            f"({type(error).__name__}: {error}); fetch them again") from error

    def score(self, texts: Sequence[str], case) -> float | None:
        """RS: TF-IDF cosine × 100 of the texts and those on the new target; None where the
        record has no ids or there are no texts on them."""
        references = self.texts.get((case.relation, case.target_id))
        if not references:
            return None
        ours, theirs = self._weights(" ".join(texts)), self._weights(" ".join(references))
        product = sum(weight * theirs.get(word, 0.0) for word, weight in ours.items())
        norms = math.sqrt(sum(w * w for w in ours.values()) * sum(w * w for w in theirs.values()))
        return 100 * product / norms if norms else 0.0

    def _weights(self, text: str) -> dict[str, float]:
        """{word: count × idf}; words are of two letters or more, in lower case."""
        counts = Counter(re.findall(r"\b\w\w+\b", text.lower()))
        return {word: count * float(self.idf[self.vocabulary[word]])
                for word, count in counts.items() if word in self.vocabulary}
