"""Build the tokenizer that a GGUF file contains, so that it gives the same tokens as in llama.cpp.

transformers builds a tokenizer from the file's tokens and merges, but for some files it splits text before the merges
differently from llama.cpp. That is corrected here, with a warning if the file names an unknown way of splitting.
`tests/base/gguf/test_llama_cpp.py` compares the tokens of texts with llama.cpp's.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.base.gguf.file import GgufHeader
from tsugiki.errors import warn_caller
from tsugiki.language import _

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
SUPPORTED_TOKENIZERS = (BYTE_LEVEL, SENTENCEPIECE)
"""Values of `tokenizer.ggml.model` that are supported: byte-level BPE and SentencePiece's BPE."""

# Values of `tokenizer.ggml.pre`, which says how byte-level BPE splits text. The names are from llama.cpp's
# src/llama-vocab.cpp.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum", "exaone4")
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_WHOLE_TOKENS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
"""A piece of text that is a token as a whole is not merged from smaller tokens, and a text begins with BOS."""
_SPLIT_BY_TRANSFORMERS = (
    *("dbrx", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35"),
    *("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
)


def build_tokenizer(path: Path, header: GgufHeader, folder: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF file: tokens, merges, special tokens, BOS and EOS settings, chat template.

    The folder is empty: otherwise transformers would read tokenizer files from the GGUF file's own folder.
    """
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    pre = str(metadata.get("tokenizer.ggml.pre", ""))
    byte_level = metadata["tokenizer.ggml.model"] == BYTE_LEVEL
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=str(path.resolve()))
    if byte_level:
        _set_splitting(tokenizer.backend_tokenizer, pre, path.name)
    else:
        _set_space_marks(tokenizer.backend_tokenizer, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    default = not byte_level or pre in _WHOLE_TOKENS
    tokenizer.add_bos_token = bool(metadata.get("tokenizer.ggml.add_bos_token", default))
    tokenizer.add_eos_token = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    return tokenizer


def _set_splitting(backend: "Tokenizer", pre: str, file: str) -> None:
    """Let byte-level BPE split text as the value of `tokenizer.ggml.pre` requires."""
    from tokenizers import pre_tokenizers

    if pre in _WHOLE_TOKENS:
        backend.model.ignore_merges = True
    elif pre in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre not in (*_AS_GPT2, *_SPLIT_BY_TRANSFORMERS):
        message = _(
            "{file} splits text before tokenisation in a way that Tsugiki does not know ({value}); it is split "
            "as for GPT-2, and some tokens may differ from llama.cpp's"
        )
        warn_caller(message.format(file=file, value=pre or _("unnamed")))


def _set_space_marks(backend: "Tokenizer", prefix: bool) -> None:
    """Let SentencePiece's BPE write a space as ▁.

    With `prefix`, one more ▁ is added before the text, and before text that follows a special token.
    """
    from tokenizers import decoders, normalizers

    mark = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if prefix else mark
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if prefix else plain)
