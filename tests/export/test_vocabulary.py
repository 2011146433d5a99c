"""Tokenizers in GGUF files. The oracle is llama.cpp, which tokenises the same prompts with the file."""

from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.export.tokenizers_of_kinds import CHAT, bytes_bpe, sentencepiece_bpe, unigram
from tests.tiny import byte_tokenizer
from tsugiki.base.loading import load_tokenizer
from tsugiki.errors import TsugikiError
from tsugiki.export import tokens
from tsugiki.export.tokens import PROMPTS, compare_tokens
from tsugiki.export.vocabulary import PRE_TOKENIZERS, add_vocabulary, read_vocabulary


def _bytes(steps: tuple[str, ...], **special: Any) -> Any:
    return bytes_bpe(*(step for step in steps if step != "bytes"), use_regex="bytes" in steps, **special)


KINDS = {
    **{name: lambda steps=steps: _bytes(steps) for steps, name in PRE_TOKENIZERS.items()},
    "bytes alone": byte_tokenizer,
    "chat": lambda: _bytes(("bytes",), chat=True, begin=True),
    "gemma": lambda: sentencepiece_bpe(begin=True),
    "gemma, chat": lambda: sentencepiece_bpe(begin=True, chat=True),
    "llama 2": lambda: sentencepiece_bpe(prefix=True, begin=True),
    "embedded": lambda: load_tokenizer("embedded"),
}


def _write(path: Path, vocabulary: Any) -> Path:
    """A GGUF file with a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_cuts_text_as_the_tokenizer_does(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    tokenizer = KINDS[kind]()
    comparison = compare_tokens(tokenizer, _write(tmp_path / "t.gguf", read_vocabulary(tokenizer, len(tokenizer) + 3)))
    assert comparison.problems == ()
    assert comparison.tokenized_by.startswith("llama.cpp")
    assert comparison.prompts > len(PROMPTS)


def test_a_unigram_model_differs_only_in_spaces_at_the_end_and_before_special_tokens(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    tokenizer = unigram()
    problems = compare_tokens(
        tokenizer, _write(tmp_path / "t.gguf", read_vocabulary(tokenizer, len(tokenizer)))
    ).problems
    assert [problem for problem in problems if "春" not in problem and "two after.  " not in problem] == []


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("pre", "smollm", "tokens in the file and"),
        ("chat_template", CHAT + " ", "the chat template is"),
        ("add_bos", True, "whether a prompt begins"),
        ("ids", {"bos": 1, "eos": 4}, "the end token is 4 in the file and 2"),
    ],
)
def test_differences_are_reported(field: str, wrong: Any, said: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    import dataclasses

    tokenizer = _bytes(("bytes",), chat=True)
    vocabulary = dataclasses.replace(read_vocabulary(tokenizer, len(tokenizer)), **{field: wrong})
    problems = compare_tokens(tokenizer, _write(tmp_path / "t.gguf", vocabulary)).problems
    assert any(said in problem for problem in problems)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bytes alone"])
def test_without_llama_cpp_tsugikis_reader_is_used(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    tokenizer = KINDS[kind]()
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    same = compare_tokens(tokenizer, _write(tmp_path / "t.gguf", vocabulary))
    assert same.problems == ()
    assert same.prompts >= len(PROMPTS)
    assert "Tsugiki" in same.tokenized_by
    if tokenizer.chat_template is not None:
        tokenizer.chat_template = CHAT + "!"
        assert "the chat template" in compare_tokens(tokenizer, tmp_path / "t.gguf").problems[0]


@pytest.mark.parametrize("kind", [unigram, byte_tokenizer])
def test_without_llama_cpp_only_metadata_are_compared_for_other_kinds(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    tokenizer = kind()
    compared = compare_tokens(tokenizer, _write(tmp_path / "t.gguf", read_vocabulary(tokenizer, len(tokenizer))))
    assert (compared.prompts, compared.tokenized_by) == (0, None)


def test_types_and_rows_that_have_no_token() -> None:
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


def test_a_text_begins_as_it_does_in_training() -> None:
    plain, chat = _bytes(("bytes",)), _bytes(("bytes",), chat=True)
    assert read_vocabulary(plain, 800).add_bos
    assert read_vocabulary(plain, 800).ids["bos"] == plain.eos_token_id  # it sets no begin token itself
    assert not read_vocabulary(chat, 800).add_bos
    assert read_vocabulary(chat, 800).ids["bos"] == chat.bos_token_id


def test_added_tokens_past_the_models_rows_are_left_out_and_others_refused() -> None:
    tokenizer = sentencepiece_bpe()
    rows = len(tokenizer) - 1  # the last is an added one
    assert "<!-- -->" not in read_vocabulary(tokenizer, rows).tokens
    with pytest.raises(TsugikiError, match="3 more tokens"):
        read_vocabulary(tokenizer, rows - 3)


def test_what_llama_cpp_has_no_name_for_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    odd = _bytes((r"\w+|\s+",))
    with pytest.raises(TsugikiError, match=r"\\w\+.*gpt-2, smollm"):
        read_vocabulary(odd, 800)
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(TsugikiError, match="a space in front then bytes"):
        read_vocabulary(odd, 800)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a")
    with pytest.raises(TsugikiError, match="WordLevel"):
        read_vocabulary(words, 8)


def test_normalising_that_llama_cpp_leaves_out_is_noted(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = _bytes(("bytes",))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    path = _write(tmp_path / "t.gguf", read_vocabulary(tokenizer, 800))
    assert compare_tokens(tokenizer, path).notes == ("llama.cpp does not normalise text (NFC) as this tokenizer does",)
