"""Blocks: nothing lost, nothing learned twice, no padding."""

from pathlib import Path

import pytest
import torch

from tests.tiny import byte_tokenizer
from tsugiki import TsugikiError
from tsugiki.data.blocks import IGNORED, document_start, encode, pack, token_stream
from tsugiki.data.texts import Document


@pytest.mark.parametrize("length", [8, 9, 14, 15, 16, 22, 100, 101])
@pytest.mark.parametrize("block", [2, 5, 8])
def test_every_token_but_the_first_is_learned_once_in_its_own_context(length: int, block: int):
    stream = torch.arange(1000, 1000 + length, dtype=torch.int32)
    blocks = pack(stream, block)
    learned = []
    for row in range(len(blocks)):
        item = blocks[row]
        assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
        assert item["input_ids"].diff().eq(1).all(), "a row is a stretch of the stream"
        targets = item["labels"][1:]
        assert torch.equal(targets[targets != IGNORED], item["input_ids"][1:][targets != IGNORED])
        learned += targets[targets != IGNORED].tolist()
    assert sorted(learned) == stream[1:].tolist()
    assert blocks.learned_tokens == length - 1


def test_too_little_text_for_a_block():
    with pytest.raises(TsugikiError, match="has 7 tokens, less than one block of 8"):
        pack(torch.arange(7, dtype=torch.int32), 8)


def test_the_end_token_stands_between_documents_and_in_front():
    tokenizer = byte_tokenizer()
    stream = token_stream(tokenizer, [Document("ab", ""), Document("猫", "")])
    a, b = encode(tokenizer, ["ab", "猫"])
    assert stream.tolist() == [0, *a, 0, *b, 0]


def test_a_begin_token_that_the_tokenizer_sets_stands_before_each_document():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    assert document_start(tokenizer) == 0, "a begin token that is not used is not set"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    a, b = encode(tokenizer, ["ab", "c"])
    assert token_stream(tokenizer, [Document("ab", ""), Document("c", "")]).tolist() == [bos, *a, 0, bos, *b, 0]


def test_the_cache_is_by_content(tmp_path: Path):
    tokenizer = byte_tokenizer()
    one, two = [Document("あいう", "a")], [Document("あいえ", "a")]
    first = token_stream(tokenizer, one, tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    assert torch.equal(token_stream(tokenizer, [Document("あいう", "moved")], tmp_path), first)
    assert list(tmp_path.iterdir()) == files, "the same text from elsewhere is not tokenised again"
    assert not torch.equal(token_stream(tokenizer, two, tmp_path), first)
    files[0].write_bytes(b"cut short")
    assert torch.equal(token_stream(tokenizer, one, tmp_path), first)


def test_no_end_token():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.bos_token = None
    with pytest.raises(TsugikiError, match="no end token"):
        token_stream(tokenizer, [Document("a", "")])
