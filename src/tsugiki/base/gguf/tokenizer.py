"""The tokenizer that a GGUF file carries, as llama.cpp reads it.

Transformers builds it from the file's tokens and merges, and how it splits text before it merges is for some files
another way than llama.cpp's; that is set here. Where nobody knows the way, a warning says so.
`tests/gguf_base/test_llama_cpp.py` compares the tokens of texts.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.base.gguf.file import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BYTES, SENTENCEPIECE = "gpt2", "llama"
KINDS = (BYTES, SENTENCEPIECE)
"""Values of `tokenizer.ggml.model`: BPE of bytes, and SentencePiece's BPE."""

# Values of `tokenizer.ggml.pre`, how a BPE of bytes splits text; the names are of llama.cpp's src/llama-vocab.cpp.
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
        path: the file.
        header: its header.
        folder: an empty one, so that nothing that lies beside the file is taken for a part of the tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    split = str(metadata.get("tokenizer.ggml.pre", ""))
    bytewise = metadata["tokenizer.ggml.model"] == BYTES
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=str(path.resolve()))
    if bytewise:
        _split_bytewise(tokenizer.backend_tokenizer, split, path.name)
    else:
        _mark_spaces(tokenizer.backend_tokenizer, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    begins = not bytewise or split in _WHOLE_TOKENS  # unless the file says it
    tokenizer.add_bos_token = bool(metadata.get("tokenizer.ggml.add_bos_token", begins))
    tokenizer.add_eos_token = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    return tokenizer


def _split_bytewise(backend: "Tokenizer", split: str, name: str) -> None:
    from tokenizers import pre_tokenizers

    if split in _WHOLE_TOKENS:
        backend.model.ignore_merges = True
    elif split in _DIGITS_ALONE:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif split not in (*_AS_GPT2, *_SPLIT_BY_TRANSFORMERS):
        warnings.warn(
            f"{name} splits text into tokens in a way that is not known here ({split or 'it does not say which'}); "
            "it is split as GPT-2 does, and some tokens may be others than llama.cpp's",
            stacklevel=2,
        )


def _mark_spaces(backend: "Tokenizer", at_start: bool) -> None:
    """A space is ▁. `at_start`: one more stands before the text, and before what follows a special token."""
    from tokenizers import decoders, normalizers

    mark = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if at_start else mark
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if at_start else plain)
