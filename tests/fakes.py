"""A tokenizer of one character a token, in the shape of mlx-lm's, for tiny random models."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def FakeTokenizer():
    letters = [chr(c) for c in range(32, 127)]
    vocabulary = {c: i + 2 for i, c in enumerate(letters)} | {"<s>": 0, "</s>": 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>",
                                   unk_token="</s>")
