"""A tokenizer of one character per token, in the shape of mlx-lm's, for tiny random models."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def FakeTokenizer(begins: bool = False):
    """begins: whether its texts begin with BOS."""
    letters = [chr(c) for c in range(32, 127)]
    vocabulary = {c: i + 2 for i, c in enumerate(letters)} | {"<s>": 0, "</s>": 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if begins:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>",
                                   unk_token="</s>")
