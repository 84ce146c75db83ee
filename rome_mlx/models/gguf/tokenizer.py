"""The tokenizer that a GGUF file describes, written as transformers and mlx-lm read it."""

from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_TOKENIZER_MAPPING,
    convert_gguf_tokenizer,
)

_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id",
            "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


def write_tokenizer(metadata: dict, directory: Path) -> None:
    """Write tokenizer.json and its configuration from a GGUF file's key-value pairs.

    BOS is added on encoding where the file says so, or says nothing and is SentencePiece.
    """
    described = {name: value for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
                 if (value := metadata.get(f"tokenizer.{key}")) is not None}
    backend, _ = convert_gguf_tokenizer(metadata["general.architecture"], described)
    tokens = described["tokens"]
    special = {name: tokens[i] for name, key in _SPECIAL.items()
               if (i := metadata.get(f"tokenizer.ggml.{key}")) is not None}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token")
    if add_bos is None:
        add_bos = described.get("tokenizer_type") == "llama"
    if add_bos and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, described["bos_token_id"])])
    elif not add_bos and described.get("tokenizer_type") == "llama":
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    tokenizer.save_pretrained(str(directory))
