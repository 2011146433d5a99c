"""The text of tokens as they come, and the texts of single tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer
from tsugiki.generation import ScoredToken, TextStream

pytest.importorskip("starlette")
from tsugiki.serve import completion_logprobs, token_text, whole_text


def bytes_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False).input_ids
    return ids


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2's and Mistral's: it drops the space at the beginning of a text."""
    words = ["▁", "t", "h", "e", "▁t", "he", "the", "▁the"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "t"), ("h", "e"), ("t", "he"), ("▁t", "he")]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_words_with_and_without_a_space_are_told_apart():
    tokenizer = llama_tokenizer()
    spaced, joined, part = tokenizer.convert_tokens_to_ids(["▁the", "the", "<0xE6>"])
    assert [token_text(tokenizer, token) for token in (spaced, joined, part)] == [" the", "the", "<0xE6>"]
    stream = TextStream(tokenizer, [spaced])
    assert "".join(map(stream.add, [spaced, joined])) == " thethe"
    scored = ScoredToken(spaced, -0.2, ((spaced, -0.2), (joined, -5.0)))
    listed = completion_logprobs(tokenizer, [scored, scored])
    assert listed["top_logprobs"] == 2 * [{" the": -0.2, "the": -5.0}]


def test_what_is_complete_is_shown_though_a_run_of_bytes_is_not():
    tokenizer = llama_tokenizer()
    lemon = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "檸".encode()])
    the = tokenizer.convert_tokens_to_ids("▁the")
    ids = [*lemon, the, *lemon, *lemon[:2]]
    assert whole_text(tokenizer, ids) == "檸 the檸"


def test_bytes_that_never_are_a_character_do_not_hold_the_text_back():
    stream = TextStream(byte_tokenizer(), [])
    text = "".join(stream.add(bytes_of("春")[0]) for _ in range(1000))
    assert 900 < len(text) <= 1000


def test_a_stop_string_before_an_incomplete_character_at_the_end():
    stream = TextStream(byte_tokenizer(), bytes_of("a"), [" "])
    stream._ids.append(bytes_of(" ")[0])  # a token that is a space and the first byte of a character
    assert stream.add(bytes_of("春")[0]) + stream.finish() == ""
    assert stream.stopped


@pytest.mark.parametrize(("least", "expected"), [(0, "x"), (1, "x"), (3, "xabx"), (6, "xabxabx"), (9, "xabxabxab")])
def test_stop_strings_before_the_least_number_of_tokens_do_not_count(least: int, expected: str):
    stream, text = TextStream(byte_tokenizer(), [0], ["ab"]), ""
    for count, token in enumerate(bytes_of("xabxabxab"), 1):
        text += stream.add(token, count > least)
        if stream.stopped:
            break
    assert text + stream.finish(False) == expected


@pytest.mark.parametrize(("cut", "after"), [(0, ""), (1, "a"), (2, "山"), (2, ""), (3, "a"), (3, "山")])
def test_a_character_that_begins_in_the_prompt(cut: int, after: str):
    spring = bytes_of("春")
    stream = TextStream(byte_tokenizer(), [*bytes_of("x"), *spring[:cut]])
    text = "".join(map(stream.add, [*spring[cut:], *bytes_of(after)])) + stream.finish()
    assert text == ("" if cut == 3 else "春") + after
