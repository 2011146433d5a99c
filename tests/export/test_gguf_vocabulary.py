"""The metadata of a tokenizer in a GGUF file."""

import gguf
import pytest

from tests.export.tokenizers_of_kinds import byte_level, sentencepiece_bpe
from tsugiki.errors import TsugikiError
from tsugiki.export import read_vocabulary


def test_token_types_and_rows_without_a_token() -> None:
    tokenizer = sentencepiece_bpe(begin=True)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 2, ends=[2, 4])
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<eos>"] == kinds["<turn>"] == gguf.TokenType.CONTROL
    assert kinds["<!-- -->"] == gguf.TokenType.USER_DEFINED
    assert kinds["<0x0A>"] == gguf.TokenType.BYTE
    assert kinds["<unk>"] == gguf.TokenType.UNKNOWN
    assert kinds["▁a"] == gguf.TokenType.NORMAL
    assert list(vocabulary.tokens[-2:]) == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]
    assert vocabulary.types[-1] == gguf.TokenType.UNUSED
    assert vocabulary.ids == {"bos": 1, "eos": 2, "unknown": 0, "eot": 4}


def test_a_text_begins_as_in_training() -> None:
    plain, chat = byte_level(("bytes",)), byte_level(("bytes",), chat=True)
    assert read_vocabulary(plain, 800).add_bos
    assert read_vocabulary(plain, 800).ids["bos"] == plain.eos_token_id  # it sets no begin token itself
    assert not read_vocabulary(chat, 800).add_bos
    assert read_vocabulary(chat, 800).ids["bos"] == chat.bos_token_id


def test_tokens_without_a_row_are_left_out_if_added_and_rejected_otherwise() -> None:
    tokenizer = sentencepiece_bpe()
    rows = len(tokenizer) - 1  # the last is an added one
    assert "<!-- -->" not in read_vocabulary(tokenizer, rows).tokens
    with pytest.raises(TsugikiError, match="3 "):
        read_vocabulary(tokenizer, rows - 3)


def test_unsupported_tokenizers_are_rejected() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    odd = byte_level((r"\w+|\s+",))
    with pytest.raises(TsugikiError, match=r"\\w\+.*gpt-2, smollm"):
        read_vocabulary(odd, 800)
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(TsugikiError, match="a space in front then bytes"):
        read_vocabulary(odd, 800)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a")
    with pytest.raises(TsugikiError, match="WordLevel"):
        read_vocabulary(words, 8)
