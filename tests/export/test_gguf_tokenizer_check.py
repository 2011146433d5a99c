"""Tokens of GGUF files compared with those of the tokenizer. The oracle is llama.cpp, where it is installed."""

from pathlib import Path
from typing import Any

import pytest

from tests.export.tokenizers_of_kinds import CHAT, KINDS, byte_level, unigram, write_tokenizer
from tests.tiny import byte_tokenizer
from tsugiki.export import PROMPTS, compare_tokens, read_vocabulary
from tsugiki.export import gguf_tokenizer_check as tokens


def compared(tokenizer: Any, folder: Path, more: int = 0) -> Any:
    """Compare a tokenizer with that of a file, whose model has some more rows."""
    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + more)
    return compare_tokens(tokenizer, write_tokenizer(folder / "t.gguf", vocabulary))


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    comparison = compared(KINDS[kind](), tmp_path, 3)
    assert comparison.problems == ()
    assert comparison.tokenized_by.startswith("llama.cpp")
    assert comparison.prompts > len(PROMPTS)


def test_a_unigram_model_differs_only_in_spaces_at_the_end_and_before_special_tokens(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    problems = compared(unigram(), tmp_path).problems
    assert [problem for problem in problems if "春" not in problem and "two after.  " not in problem] == []


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("pre", "smollm", "tokens in the file and"),
        ("chat_template", CHAT + " ", "the chat template is"),
        ("add_bos", True, "whether a prompt begins"),
        ("ids", {"bos": 1, "eos": 4}, "4 .* 2"),
    ],
)
def test_differences_are_reported(field: str, wrong: Any, said: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    import dataclasses

    tokenizer = byte_level(("bytes",), chat=True)
    vocabulary = dataclasses.replace(read_vocabulary(tokenizer, len(tokenizer)), **{field: wrong})
    problems = compare_tokens(tokenizer, write_tokenizer(tmp_path / "t.gguf", vocabulary)).problems
    assert any(said in problem for problem in problems)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bytes alone"])
def test_without_llama_cpp_tsugikis_reader_is_used(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    tokenizer = KINDS[kind]()
    same = compared(tokenizer, tmp_path)
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
    found = compared(kind(), tmp_path)
    assert (found.prompts, found.tokenized_by) == (0, None)


def test_unsupported_normalisation_is_noted(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = byte_level(("bytes",))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    notes = compared(tokenizer, tmp_path).notes
    assert notes == ("llama.cpp does not normalise text (NFC) as this tokenizer does",)
