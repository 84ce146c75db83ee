"""Free text: its entropy by hand, its likeness to references by hand, sampled with a seed."""

import json
from collections import Counter

import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.evaluation.generation import References, generate, ngram_entropy, words_of


def entropy(items):
    shares = np.array(list(Counter(items).values())) / len(items)
    return -(shares * np.log2(shares)).sum()


def test_the_entropy_of_a_text_by_hand():
    words = ["the", "cat", "saw", "the", "cat", "and", "the", "dog", "."]
    two, three = (entropy(list(zip(*(words[i:] for i in range(n)), strict=False)))
                  for n in (2, 3))
    expected = 100 * (2 / 3 * two + 4 / 3 * three) / 2
    assert ngram_entropy(["the cat saw the cat and the dog."]) == pytest.approx(expected)
    assert ngram_entropy(["a b a b a b a b a b"]) < ngram_entropy(["a b c d e f g h i j"])
    assert ngram_entropy(["no no no no", "no no no no"]) == 0


def test_words_are_of_sentences_as_the_authors_take_them():
    assert words_of("It isn't in Rome. The other one has 3.5 of them, too.") == [
        "It", "is", "n't", "in", "Rome", ".", "The", "other", "one", "has", "3.5", "of",
        "them", ",", "too", "."]  # what nltk.word_tokenize gives with its English data


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_continues_every_prompt_among_the_likeliest_five(kind):
    model, tokenizer = tiny_model(kind), FakeTokenizer()
    prompts = ["ab", "a much longer prompt", "xyz"]
    texts = generate(model, tokenizer, prompts, seed=3, length=40)
    assert texts == generate(model, tokenizer, prompts, seed=3, length=40)
    assert texts != generate(model, tokenizer, prompts, seed=4, length=40)
    import mlx.core as mx
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer.encode(prompt)
        letters = text.replace(" ", "")
        assert letters.startswith(prompt.replace(" ", ""))
        alone = generate(model, tokenizer, [prompt], seed=3, length=len(ids) + 1)[0]
        likeliest = np.argsort(np.array(model(mx.array([ids]))[0, -1]))[-5:]
        assert any(alone == tokenizer.decode([*ids, int(t)], skip_special_tokens=True)
                   for t in likeliest)


@pytest.fixture
def references(tmp_path):
    np.save(tmp_path / "idf.npy", np.array([1.0, 2.0, 4.0]))
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"rome": 0, "river": 1, "tiber": 2}))
    (tmp_path / "attribute_snippets.json").write_text(json.dumps(
        [{"relation_id": "P1", "target_id": "Q1", "samples": [{"text": "Rome, on the River"},
                                                             {"text": "the Tiber."}]}]))
    return tmp_path


class Asked:
    relation, target_id = "P1", "Q1"


def test_the_reference_score_is_a_tfidf_cosine(references):
    found = References(references)
    ours, theirs = np.array([2.0, 2.0, 0.0]), np.array([1.0, 2.0, 4.0])
    expected = 100 * ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert found.score(["Rome and rome", "a river"], Asked) == pytest.approx(expected)
    assert found.score(["nothing of it"], Asked) == 0
    Asked.target_id = "Q9"
    assert found.score(["Rome"], Asked) is None
    Asked.target_id = "Q1"


@pytest.mark.parametrize("name", ["idf.npy", "tfidf_vocab.json", "attribute_snippets.json"])
def test_a_damaged_reference_file_is_refused(references, name):
    (references / name).write_text("[1]")
    with pytest.raises(rm.RomeError, match="ROME authors"):
        References(references)
    (references / name).unlink()
    with pytest.raises(rm.RomeError, match=name):
        References(references)
