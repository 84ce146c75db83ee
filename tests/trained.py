"""Tokenizers of every style that mlx-lm's models use, trained here on a little text."""

import json

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

TEXT = 3 * [
    "The Eiffel Tower is located in the city of Paris.", "The Louvre is in the city of Paris,",
    "the capital of France is Paris and the capital of Italy is Rome", "Rome is a city in Italy",
    "São Paulo é uma cidade", "東京タワーは東京にあります", "the tower is in the city",
]


def byte_level(post_processor=None, bos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's: every text is representable; offsets of `Ġ` tokens hold the space.

    bos: with a token in front of the text, as Llama 3's.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<s>"], show_progress=False))
    if bos:
        post_processor = _bos_first(tokenizer)
    if post_processor:
        tokenizer.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>",
                                   bos_token="<s>" if bos else None)


def sentencepiece(space: str, bos: bool = True,
                  unigram: bool = False) -> PreTrainedTokenizerFast:
    """`▁` for spaces and bytes for what is unknown.

    space: who writes `▁`: "metaspace", a pre-tokenizer, one also before the text; "normalizer",
    one also before the text, as Llama 2's files have it; "bare", none before the text, as Gemma's.
    """
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    if space == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        marks = [normalizers.Replace(" ", "▁")]
        marks = [normalizers.Prepend("▁"), *marks] if space == "normalizer" else marks
        tokenizer.normalizer = normalizers.Sequence(marks)
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer, more = ((trainers.UnigramTrainer, {"unk_token": "<unk>"}) if unigram
                     else (trainers.BpeTrainer, {}))
    tokenizer.train_from_iterator(TEXT, trainer(
        vocab_size=150 if unigram else 300, special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False, **more))
    tokenizer = _with_bytes(tokenizer)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos:
        tokenizer.post_processor = _bos_first(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>",
                                   bos_token="<s>" if bos else None)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: words split at punctuation, `##` within a word; no text can be got back."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a token for every byte, for characters that have none."""
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        if isinstance(vocabulary, dict):
            vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
        else:
            vocabulary.append([f"<0x{byte:02X}>", -20.0])
    described["model"] |= {"byte_fallback": True}
    if isinstance(vocabulary, dict):
        described["model"] |= {"fuse_unk": True}
    return Tokenizer.from_str(json.dumps(described))


def _bos_first(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])


class BytesWithoutOffsets:
    """A tokenizer of the slow kind: BOS, then one token a byte, and no offsets."""

    is_fast = False
    bos_token, all_special_ids = "<s>", [256]

    def encode(self, text, add_special_tokens=True):
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, ids, skip_special_tokens=False):
        return bytes(i for i in ids if i < 256).decode(errors="replace")
