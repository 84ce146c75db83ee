"""Subjects and targets are found in the text as it is really tokenized."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rome_mlx.errors import RomeError
from rome_mlx.facts import Fact
from rome_mlx.tokens import encode, encode_with_target, first_target_id, with_target

TEXT = 3 * [
    "The Eiffel Tower is located in the city of Paris.", "The Louvre is in the city of Paris,",
    "the capital of France is Paris and the capital of Italy is Rome", "Rome is a city in Italy",
    "São Paulo é uma cidade", "東京タワーは東京にあります", "the tower is in the city",
]


def byte_level(post_processor=None) -> PreTrainedTokenizerFast:
    """As GPT-2's: no BOS, every text is representable; offsets of `Ġ` tokens hold the space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if post_processor:
        tokenizer.post_processor = post_processor
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentencepiece(normalized: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁` for spaces, one before the text, BOS in front, bytes for what is unknown.

    normalized: `▁` is put by normalizers, as Llama's files do, not by a pre-tokenizer.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if normalized:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    described["model"] |= {"byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


class BytesWithoutOffsets:
    """A tokenizer of the slow kind: BOS, then one token a byte, and no offsets."""

    is_fast = False
    bos_token, all_special_ids = "<s>", [256]

    def encode(self, text, add_special_tokens=True):
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, ids, skip_special_tokens=False):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


TOKENIZERS = {
    "byte level": byte_level(),
    "byte level, trimmed": byte_level(processors.ByteLevel(trim_offsets=True)),
    "metaspace": sentencepiece(normalized=False),
    "normalized": sentencepiece(normalized=True),
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


@settings(max_examples=150, deadline=None)
@given(before=WORDS, subject=WORDS, after=WORDS,
       name=st.sampled_from(["byte level", "byte level, trimmed"]))
def test_the_range_is_the_shortest_that_holds_the_subjects_bytes(before, subject, after, name):
    """A byte-level token is as long, in letters of the vocabulary, as the bytes it stands for."""
    assume(subject.strip() and subject == subject.strip())
    tokenizer = TOKENIZERS[name]
    _, ids, (begin, end) = covered(tokenizer, Fact(before + "{}" + after, subject))
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    start, stop = len(before.encode()), len((before + subject).encode())
    assert sum(lengths[:begin]) <= start < sum(lengths[: begin + 1])
    assert sum(lengths[: end - 1]) < stop <= sum(lengths[:end])


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


@pytest.mark.parametrize("name", ["metaspace", "normalized", "no offsets"])
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
