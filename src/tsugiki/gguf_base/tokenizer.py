"""The tokenizer that a GGUF file carries, as llama.cpp reads it.

Transformers builds it from the file's tokens and merges. Where that is known to give other tokens than llama.cpp does
(`benchmarks/gguf.py` compares the two), it is put right here; where nobody knows, a warning says so.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.gguf_base.file import GgufHeader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("gpt2", "llama")
"""`tokenizer.ggml.model`: BPE of bytes, and SentencePiece's BPE."""

# What follows is `tokenizer.ggml.pre`, how text is split before it is merged; the names and what they mean are of
# llama.cpp's src/llama-vocab.cpp. Of KINDS, only gpt2 looks at it.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum", "exaone4")
_DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_WHOLE_TOKENS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
"""A piece that is a token is that token, whatever the merges; and a text begins with the begin token."""
_SPLIT_BY_TRANSFORMERS = (
    *("dbrx", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35"),
    *("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
)


def build_tokenizer(path: Path, header: GgufHeader, folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file: tokens, merges, special tokens, what begins and ends a text, chat template.

    Args:
        path: the file, absolute.
        header: its header.
        folder: an empty one, so that nothing that lies beside the file is taken for a part of the tokenizer.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = str(header.metadata.get("tokenizer.ggml.pre", ""))
    bytewise = header.metadata["tokenizer.ggml.model"] == "gpt2"
    whole_tokens = bytewise and split in _WHOLE_TOKENS
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder,
        gguf_file=str(path),
        **({"add_bos_token": True} if whole_tokens else {}),  # the file's word wins
    )
    backend = tokenizer.backend_tokenizer
    if whole_tokens:
        backend.model.ignore_merges = True
    elif bytewise and split in _DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif bytewise and split not in (*_AS_GPT2, *_SPLIT_BY_TRANSFORMERS):
        warnings.warn(
            f"{path.name} splits text before it is tokenised in a way ({split or 'it does not say which'}) that "
            "Transformers does not know; it is split as GPT-2 does, and some tokens may be others than llama.cpp's",
            stacklevel=2,
        )
    return tokenizer
