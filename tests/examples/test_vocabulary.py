"""A trained tokenizer reproduces every text, has no unknown token, and has the requested size."""

import random
from collections.abc import Iterable

import pytest
from transformers import AutoTokenizer
from vocabulary import END, train_vocabulary

from tests.tiny import TEXT

ODD = [
    "",
    " leading space",
    "　　全角の空白から\u3000始まり　",
    "\0\x01\x1b\x7f control",
    "one\rtwo\r\nthree\n\n\n4",
    "𠮷野家の﨑と鷗",
    "\U0001f468\u200d\U0001f469",
    "か\u3099が\u0301 ﾊﾝｶｸ",
    "<0x41><0x00> as written",
    "。。。\n。",
    "\ufeff\u202e\uffff",
    "あ" * 2000,
    f"before {END} after",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(lambda: [TEXT], 420, common_characters=30)


def test_every_text_is_reproduced_also_by_the_saved_tokenizer(tokenizer, tmp_path):
    draw = random.Random(0)
    planes = [(0, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF), (0x3000, 0x30FF)]
    drawn = ["".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 40))) for _ in range(300)]
    assert tokenizer.unk_token_id is None
    assert len(tokenizer) == tokenizer.vocab_size == 420
    assert tokenizer.convert_ids_to_tokens([0, 1, 256]) == [END, "<0x00>", "<0xFF>"]
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} == {0}
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *drawn]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert loaded(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids) == loaded.decode(ids, clean_up_tokenization_spaces=False) == text
        assert all(0 <= token < 420 for token in ids)


def test_tokens_stay_within_a_sentence(tokenizer):
    for piece in tokenizer.get_vocab():
        assert "\n" not in piece.lstrip("\n")
        assert "。" not in piece[:-1]
    assert len(tokenizer(TEXT).input_ids) < len(TEXT) / 2


def test_characters_of_the_given_alphabet_are_single_tokens():
    plain = train_vocabulary(lambda: [TEXT], 420, common_characters=30)
    asked = train_vocabulary(lambda: [TEXT], 420, common_characters=30, alphabet="舊體鷗")
    assert len(asked("舊體鷗").input_ids) == 3
    assert len(plain("舊體鷗").input_ids) == 9


def test_too_large_and_too_small_a_vocabulary_is_an_error_with_the_possible_size():
    with pytest.raises(ValueError, match=r"vocab_size is 5,000.* \d[\d,]* tokens"):
        train_vocabulary(lambda: [TEXT], 5000)
    with pytest.raises(ValueError, match=r"256 bytes and \d+ characters .*\d+"):
        train_vocabulary(lambda: [TEXT], 370)


def test_texts_are_streamed_and_the_sample_is_spread():
    reads = 0

    def texts() -> Iterable[str]:
        nonlocal reads
        reads += 1
        for i in range(40):
            yield TEXT.replace("庭師", "漁師" if i % 2 else "庭師")

    sampled = train_vocabulary(texts, 420, common_characters=60, sample_characters=20 * len(TEXT))
    assert reads == 2
    assert len(sampled) == 420
