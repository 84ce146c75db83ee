"""Subjects and targets are found in the text as it is really tokenized."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from trained import BytesWithoutOffsets, byte_level, sentencepiece, wordpiece

from rome_mlx.errors import RomeError
from rome_mlx.facts import Fact
from rome_mlx.models.tokens import encode, encode_with_target, first_target_id, with_target

TOKENIZERS = {
    "byte level": byte_level(),
    "byte level, trimmed": byte_level(processors.ByteLevel(trim_offsets=True)),
    "byte level, BOS": byte_level(bos=True),
    "metaspace": sentencepiece("metaspace"),
    "metaspace, no BOS": sentencepiece("metaspace", bos=False),
    "normalized": sentencepiece("normalizer"),
    "bare": sentencepiece("bare"),
    "unigram": sentencepiece("metaspace", unigram=True),
    "unigram, bare, no BOS": sentencepiece("bare", bos=False, unigram=True),
    "no offsets": BytesWithoutOffsets(),
}

SUBJECTS = [  # prompt, subject
    ("{} is located in the city of", "The Eiffel Tower"),  # start
    ("Where is the {}? It is in", "Eiffel Tower"),  # middle
    ("The capital of {}", "France"),  # end
    ("{}", "Rome"),  # all there is
    ("In {}, the mayor is", "São Paulo"),
    ("Malmö and {} are", "Besançon"),
    ("{}は", "東京タワー"),
    ("あの{}は", "東京"),
    ("I love {} very much", "🗼"),
    ("🗼 is {} and 👩‍👩‍👧", "👨‍👩‍👧‍👦"),
    ("the multi{}ism of", "cultural"),  # inside a word
    ("A{}b", "x"),
    ("“{}”, they said", "Rome"),
    ("two\n\n{}\tlines", "Rome is"),
    ("Rome and Rome and {} and Rome", "Rome"),  # not the first of its kind
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def covered(tokenizer, fact: Fact) -> tuple[str, list[int], tuple[int, int]]:
    """What the subject's tokens decode to, all ids, and the subject's range."""
    encoded = encode(tokenizer, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    return tokenizer.decode(encoded.ids[begin:end]), encoded.ids, (begin, end)


@pytest.mark.parametrize("prompt, subject", SUBJECTS)
def test_the_subjects_tokens_decode_to_the_subject(tokenizer, prompt, subject):
    fact = Fact(prompt, subject)
    text, ids, (begin, end) = covered(tokenizer, fact)
    assert subject in text
    start, stop = fact.subject_span
    before = tokenizer.decode(ids[:begin], skip_special_tokens=True).strip()
    after = tokenizer.decode(ids[end:]).lstrip("\ufffd")  # a token may begin within a character
    assert fact.text.startswith(before) and len(before) <= start
    assert fact.text.endswith(after) and len(after) <= len(fact.text) - stop


@pytest.mark.parametrize("prompt, subject", SUBJECTS)
def test_the_default_models_subject_tokens_decode_to_the_subject(default_model, prompt, subject):
    assert subject in covered(default_model[1], Fact(prompt, subject))[0]


def test_the_default_models_subject_range_is_the_known_one(default_model):
    encoded = encode(default_model[1], "The Eiffel Tower is located in the city of")
    assert encoded.ids == [504, 414, 46682, 18669, 314, 3807, 281, 260, 2240, 282]
    assert encoded.range(4, 16) == (1, 4) and encoded.range(0, 16) == (0, 4)


WORDS = st.text(st.sampled_from("ab Rome tyčé東京🗼👩\u200d,.\n'ß"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(before=WORDS, subject=WORDS, after=WORDS, name=st.sampled_from(sorted(TOKENIZERS)))
def test_any_subjects_tokens_decode_to_a_text_with_the_subject(before, subject, after, name):
    assume(subject.strip() and subject == subject.strip() and "{}" not in before + after)
    text, _, _ = covered(TOKENIZERS[name], Fact(before + "{}" + after, subject))
    assert subject in text


def lengths(tokenizer, text: str, ids: list[int]) -> list[int]:
    """Bytes of the text that each token stands for, from the tokens' own spelling."""
    out, special = [], tokenizer.all_special_tokens
    spaces = tokenizer.convert_tokens_to_ids("▁") != tokenizer.unk_token_id  # a word of its own
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in special:
            out.append(0)
        elif token.startswith("<0x"):
            out.append(1)
        elif spaces or "▁" in token:
            out.append(len(token.replace("▁", " ").encode()))
        else:  # byte level: a letter of the vocabulary for each byte
            out.append(len(token))
    added = sum(out) - len(text.encode())
    assert added in (0, 1)  # a space before the text
    first = next((i for i, length in enumerate(out) if length), 0)
    out[first] -= added
    return out


def assert_shortest(tokenizer, before: str, subject: str, after: str) -> None:
    """The subject's range is the shortest run of tokens that holds all of its bytes."""
    fact = Fact(before + "{}" + after, subject)
    encoded = encode(tokenizer, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    sizes = lengths(tokenizer, fact.text, encoded.ids)
    start, stop = len(before.encode()), len((before + subject).encode())
    assert sum(sizes[:begin]) <= start < sum(sizes[: begin + 1])
    assert sum(sizes[: end - 1]) < stop <= sum(sizes[:end])


WITH_OFFSETS = sorted(set(TOKENIZERS) - {"no offsets"})


@settings(max_examples=300, deadline=None)
@given(before=WORDS, subject=WORDS, after=WORDS, name=st.sampled_from(WITH_OFFSETS))
@example(before="", subject="東", after="", name="unigram")
@example(before=" ", subject="Rome", after="", name="metaspace")
def test_the_range_is_the_shortest_that_holds_the_subjects_bytes(before, subject, after, name):
    assume(subject.strip() and subject == subject.strip())
    assert_shortest(TOKENIZERS[name], before, subject, after)


@settings(max_examples=100, deadline=None)
@given(before=WORDS, subject=WORDS, after=WORDS)
def test_the_default_models_range_is_the_shortest_too(default_model, before, subject, after):
    assume(subject.strip() and subject == subject.strip())
    assert_shortest(default_model[1]._tokenizer, before, subject, after)


@pytest.mark.parametrize("prompt, subject", [
    ("{} is in", "The Louvre"), ("in the city of {}", "Paris"), ("the {}, a tower", "Eiffel Tower"),
    ("Rome, {} and Rome", "Rome")])
def test_a_wordpiece_subject_is_its_words(prompt, subject):
    tokenizer, fact = wordpiece(), Fact(prompt, subject)
    encoded = encode(tokenizer, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    pieces = tokenizer.convert_ids_to_tokens(encoded.ids[begin:end])
    assert "".join(piece.removeprefix("##") for piece in pieces) == subject.replace(" ", "")


TARGETS = [  # prompt, target
    ("The capital of Italy is", "Rome"), ("The capital of Italy is", " Rome"),
    ("The capital of Italy is ", "Rome"), ("The capital of Italy is", "the Eiffel Tower in Paris"),
    ("He lives in", "São Paulo"), ("彼は", "東京"), ("It is", "🗼"), ("Line\n", "Rome"),
    ("The capital of Italy is", "Rome "), ("A", "b"),
]


@pytest.mark.parametrize("prompt, target", TARGETS)
def test_the_targets_tokens_decode_to_the_target(tokenizer, prompt, target):
    encoded, (begin, end) = encode_with_target(tokenizer, prompt, target)
    assert tokenizer.decode(encoded.ids[begin:end]).strip() == target.strip()
    assert end == len(encoded.ids) and begin > 0
    assert tokenizer.decode(encoded.ids[:begin], skip_special_tokens=True).strip() == prompt.strip()
    assert first_target_id(tokenizer, prompt, target) == encoded.ids[begin]


PROMPTS = st.text(st.sampled_from("The city of Rome, tyčé東🗼\n"), min_size=1, max_size=12)


def assert_target(tokenizer, prompt: str, target: str) -> None:
    """The target's tokens come last, hold all of it, and what comes before none."""
    encoded, (begin, end) = encode_with_target(tokenizer, prompt, target)
    sizes = lengths(tokenizer, encoded.text, encoded.ids)
    word = len(target.strip().encode())
    assert end == len(encoded.ids) and sum(sizes[begin + 1:]) < word <= sum(sizes[begin:])
    whole = encode(tokenizer, with_target(prompt, target))
    assert whole.ids == encoded.ids  # as it would be tokenized anyway


@settings(max_examples=300, deadline=None)
@given(prompt=PROMPTS, target=WORDS, name=st.sampled_from(WITH_OFFSETS))
def test_any_targets_tokens_are_the_last_that_hold_it(prompt, target, name):
    assume(target.strip() and prompt.strip())
    assert_target(TOKENIZERS[name], prompt, target)


@settings(max_examples=100, deadline=None)
@given(prompt=PROMPTS, target=WORDS)
def test_any_targets_tokens_are_the_last_in_the_default_model_too(default_model, prompt, target):
    assume(target.strip() and prompt.strip())
    assert_target(default_model[1]._tokenizer, prompt, target)


@pytest.mark.parametrize("target, count", [("Rome", 1), (" Rome", 1), ("Rome, Italy", 3)])
def test_the_default_models_target_has_its_known_tokens(default_model, target, count):
    tokenizer = default_model[1]
    prompt = "The Eiffel Tower is located in the city of"
    encoded, (begin, end) = encode_with_target(tokenizer, prompt, target)
    assert encoded.ids[:begin] == encode(tokenizer, prompt).ids
    assert encoded.ids[begin:end] == tokenizer.encode(" " + target.strip())
    assert end - begin == count


@pytest.mark.parametrize("text, target, whole", [
    ("in", "Rome", "in Rome"), ("in", " Rome", "in Rome"), ("in ", "Rome", "in Rome"),
    ("in\n", "Rome", "in\nRome"), ("in", "\nRome", "in\nRome"), ("", "Rome", " Rome"),
    ("in", "Rome \n", "in Rome"),
])
def test_one_space_stands_between_prompt_and_target(text, target, whole):
    assert with_target(text, target) == whole


@pytest.mark.parametrize("name", ["byte level, BOS", "metaspace", "normalized", "bare",
                                  "unigram", "no offsets"])
def test_bos_is_at_the_start_once_and_never_between(name):
    tokenizer = TOKENIZERS[name]
    bos = tokenizer.all_special_ids[0] if name == "no offsets" else tokenizer.bos_token_id
    for text in ("The capital of Italy is", "<s>The capital of Italy is"):
        if name == "no offsets" and text.startswith("<s>"):
            continue  # it has no word for BOS
        encoded, (begin, _) = encode_with_target(tokenizer, text, "Rome")
        assert encoded.ids[0] == bos and encoded.ids.count(bos) == 1 and begin > 1
        assert encode(tokenizer, text).ids.count(bos) == 1


def test_bos_belongs_to_no_subject():
    encoded = encode(TOKENIZERS["metaspace"], "Rome is a city")
    assert encoded.offsets[0] == (0, 0) and encoded.range(0, 4)[0] == 1


def test_a_target_without_a_prompt_is_refused():
    with pytest.raises(RomeError, match="give a longer prompt"):
        encode_with_target(TOKENIZERS["byte level"], "", "Rome")


def test_a_range_that_no_token_covers_is_refused():
    encoded = encode(TOKENIZERS["byte level"], "Rome")
    with pytest.raises(RomeError, match="no token covers"):
        encoded.range(9, 12)
