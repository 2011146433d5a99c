"""Logits and tokens of tiny GGUF files compared with llama.cpp's. Requires llama-cpp-python."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.base.gguf.files import TOKENS, tiny_base, write_gguf, write_vocabulary
from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import TEXT, ids, logits
from tsugiki.base import VERIFIED, load_model, load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")

KINDS = {"gemma3": "gemma3_text"}
"""llama.cpp's name -> transformers' model type, where they differ."""
TABLES = ("gpt2", "gemma2", "gemma3")
"""Architectures with GELU, which llama.cpp reads from a float16 table."""
TEXTS = [
    "The cat on the mat, then 12345 and 3.14.",
    "  two spaces\t\ttabs\n\n lines \r\n end ",
    "吾輩は猫である。\u3000名前は🐈 👨‍👩‍👧",
    "don't can't I'LL we've 2024年 ½ ² Ⅷ １２３",
    "<|endoftext|>the<|endoftext|> x",
    " the cat</s>the  cat </s> <s>the",
    "   ",
    "",
    TEXT[:300],
]


def compare_logits(path: Path, architecture: str) -> None:
    tokens = ids(1, 40, len(TOKENS))
    expected = llama_cpp_logits(path, tokens[0].tolist())
    close = 5e-3 if architecture in TABLES else 1e-4
    torch.testing.assert_close(logits(load_model(str(path)), tokens)[0], expected, atol=close, rtol=0)


@pytest.mark.parametrize("architecture", VERIFIED)
def test_logits_of_every_verified_architecture(architecture: str, tmp_path: Path):
    model = tiny_base(KINDS.get(architecture, architecture))
    compare_logits(write_gguf(tmp_path / "tiny.gguf", model), architecture)


@pytest.mark.parametrize("kind", ["linear", "none", None])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_rope_scaling_by_one_factor(architecture: str, kind: str | None, tmp_path: Path):
    model = tiny_base(KINDS.get(architecture, architecture))
    scaling = {f"{architecture}.rope.scaling.type": kind, f"{architecture}.rope.scaling.factor": 4.0}
    compare_logits(write_gguf(tmp_path / "tiny.gguf", model, settings=scaling), architecture)


def test_rope_scaling_by_a_factor_for_each_frequency(tmp_path: Path):
    factors = {"rope_freqs.weight": np.array([1, 2, 4, 8], np.float32)}
    compare_logits(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama"), extra=factors), "llama")


@pytest.mark.parametrize("pre", ["gpt-2", "olmo", "smollm", "command-r", "llama-bpe", "qwen2", "gpt-4o", "tekken"])
def test_tokens_of_byte_level_bpe(pre: str, tmp_path: Path):
    compare_tokens(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama"), settings={"tokenizer.ggml.pre": pre}))


@pytest.mark.parametrize("prefix", [None, True, False])
def test_tokens_of_sentencepiece(prefix: bool | None, tmp_path: Path):
    settings = {"tokenizer.ggml.add_space_prefix": prefix}
    compare_tokens(write_vocabulary(tmp_path / "tiny.gguf", settings))


def compare_tokens(path: Path) -> None:
    ours = load_tokenizer(str(path))
    theirs = llama_cpp.Llama(str(path), verbose=False, vocab_only=True)
    for text in TEXTS:
        expected = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert ours(text).input_ids == expected, text
    theirs.close()
