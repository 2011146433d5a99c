"""Verify that the tokenizer in a GGUF file gives the same tokens as the model's own tokenizer.

If llama.cpp is installed (the package llama-cpp-python), it tokenises fixed prompts with the file. Otherwise the file's
tokenizer is built here as for a base model (`base.gguf.tokenizer`, which tests compare with llama.cpp). If that is not
possible for this type of tokenizer, only the file's metadata are compared.
"""

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.base.gguf.file import GgufHeader, read_header
from tsugiki.base.gguf.tokenizer import SUPPORTED_TOKENIZERS, build_tokenizer
from tsugiki.data.encoding import document_end, document_start, encode
from tsugiki.errors import TsugikiError
from tsugiki.export.gguf_vocabulary import adds_start, unsupported_normalizers
from tsugiki.language import _, marked

PROMPTS = (
    "",
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3,141.59 km away!",
    " A space before, and two after.  ",
    "Several   spaces,\ttabs\t\tand\n\nnew\r\nlines\n\n\n",
    "    def f(x):\n        return x_1 ** 2  # indented\n",
    "庭の古い柿の木に、今年も赤い実がなった。朝ごとに鳥が来て、一つずつ食べていく。",
    "　長い橋を渡りきると、町は霧の中であった。\n「そうですか」と、彼は云った。",
    "舊字體：學校、圖書館、戀愛、櫻、澤。かなづかひ、ゐる、ゑむ、くわし。",
    "ﾊﾝｶｸ ｶﾅ ﾀﾞｹﾞ１２３ＡＢＣ、ヴァイオリン、々〆ヶ。",
    "二〇二六年、第12回、3.5％、￥1,000。",
    "Ünïcödé Ελλάς кошка עברית عربى ไทย 한국어 中文",
    "😀👍🏽👨‍👩‍👧‍👦 → ≠ ∞ 𠮷野家 ①②③",
    '<b>&amp;</b> {"key": [1, 2]} https://example.com/?a=1&b=2',
)
"""The prompts of every export. One more prompt is added for each special token, up to `_MAX_SPECIAL_TOKENS`."""

_MAX_SPECIAL_TOKENS = 20  # Gemma has thousands of special tokens

_Tokenise: TypeAlias = Callable[[str, bool], list[int]]
"""(text, whether to add a BOS token as for a prompt) -> token ids; special tokens in the text are recognised."""


@dataclass(frozen=True)
class TokenComparison:
    """The differences between the tokenizer in a GGUF file and the model's own."""

    tokenized_by: str | None
    """The program that tokenised the prompts with the file: llama.cpp, or Tsugiki's reader. None if only metadata were
    compared, because Tsugiki cannot read this kind of tokenizer and llama.cpp is not installed."""
    prompts: int
    problems: tuple[str, ...]
    """The differences found, one sentence each."""
    notes: tuple[str, ...] = ()
    """Known differences that the prompts do not show."""


def compare_tokens(tokenizer: PreTrainedTokenizerBase, path: Path) -> TokenComparison:
    """Compare the tokens, the BOS and EOS tokens and the chat template of a GGUF file with a tokenizer's."""
    notes = tuple(
        _("llama.cpp does not normalise text ({name}) as this tokenizer does").format(name=name)
        for name in unsupported_normalizers(tokenizer)
    )
    read = _llama_cpp_reader if importlib.util.find_spec("llama_cpp") is not None else _own_reader
    with read(path) as reader:
        problems = _compare_metadata(tokenizer, reader)
        if reader.tokenise is None:
            return TokenComparison(None, 0, tuple(problems), notes)
        special_ids = [token for token in sorted(tokenizer.all_special_ids) if token < reader.tokens]
        special = [tokenizer.decode([token]) for token in special_ids[:_MAX_SPECIAL_TOKENS]]
        prompts = [*PROMPTS, *(f"春{token}は {token}\n" for token in special)]
        for prompt, expected in zip(prompts, encode(tokenizer, prompts), strict=True):
            problems += _compare_ids(prompt, expected, reader.tokenise(prompt, False))
        start = [document_start(tokenizer) if tokenizer.chat_template is None else tokenizer.bos_token_id]
        expected = (start if adds_start(tokenizer) else []) + encode(tokenizer, ["春"])[0]
        problems += _compare_ids("春", expected, reader.tokenise("春", True), _(" as a prompt"))
    return TokenComparison(reader.name, len(prompts), tuple(problems), notes)


@dataclass(frozen=True)
class _Reader:
    """The tokenizer of a GGUF file, as llama.cpp or Tsugiki's own reader reads it."""

    name: str
    tokens: int
    end: int
    adds_start: bool
    """Whether a prompt begins with BOS."""
    template: str | None
    tokenise: _Tokenise | None
    """None if the tokenizer cannot be built."""


@contextmanager
def _own_reader(path: Path) -> Iterator[_Reader]:
    """Read a GGUF file with Tsugiki's own reader."""
    header = read_header(path)
    end, start = (header.metadata[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "bos"))
    adds_bos = bool(header.metadata.get("tokenizer.ggml.add_bos_token"))
    built = _build_tokenizer(path, header)

    def tokenise(text: str, add_special: bool) -> list[int]:
        return ([start] if add_special and adds_bos else []) + encode(built, [text])[0]

    yield _Reader(
        _("Tsugiki's reader (llama-cpp-python is not installed)"),
        len(header.metadata["tokenizer.ggml.tokens"]),
        end,
        adds_bos,
        header.metadata.get("tokenizer.chat_template"),
        None if built is None else tokenise,
    )


def _build_tokenizer(path: Path, header: GgufHeader) -> PreTrainedTokenizerBase | None:
    """Build the tokenizer of a GGUF file; None if that is not possible."""
    if header.metadata["tokenizer.ggml.model"] not in SUPPORTED_TOKENIZERS:
        return None
    with TemporaryDirectory() as folder:
        try:
            return build_tokenizer(path.absolute(), header, Path(folder))
        except Exception:  # transformers fails in many ways, for example on a tokenizer without merges
            return None


def _compare_metadata(tokenizer: PreTrainedTokenizerBase, reader: _Reader) -> list[str]:
    template = tokenizer.chat_template
    default = template.get("default") if isinstance(template, dict) else template
    values = [
        (marked("the end token"), reader.end, document_end(tokenizer)),
        (marked("the chat template"), reader.template, default),
        (marked("whether a prompt begins with the begin token"), reader.adds_start, adds_start(tokenizer)),
    ]
    return [
        _("{what} is {found} in the file and {expected} in the tokenizer").format(
            what=_(what), found=_abbreviate(in_file), expected=_abbreviate(expected)
        )
        for what, in_file, expected in values
        if in_file != expected
    ]


def _compare_ids(text: str, expected: Sequence[int], in_file: Sequence[int], where: str = "") -> list[str]:
    """Return a list with a sentence about the first difference; empty if the tokens are equal."""
    if list(expected) == list(in_file):
        return []
    differing = (i for i, (a, b) in enumerate(zip(expected, in_file, strict=False)) if a != b)
    first = next(differing, min(len(expected), len(in_file)))
    return [
        _(
            "{text}{where} is {own} tokens in the file and {expected} in the tokenizer; from token {position} on "
            "{found} and {wanted}"
        ).format(
            text=_abbreviate(text),
            where=where,
            own=len(in_file),
            expected=len(expected),
            position=first + 1,
            found=list(in_file[first : first + 4]),
            wanted=list(expected[first : first + 4]),
        )
    ]


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[0]


@contextmanager
def _llama_cpp_reader(path: Path) -> Iterator[_Reader]:
    """Read a GGUF file with llama.cpp, whose log is silenced within the block."""
    lib: Any = importlib.import_module("llama_cpp")
    callback, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, None)
    model = None
    try:
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise TsugikiError(_("llama.cpp cannot read {path}").format(path=path))
        vocabulary = lib.llama_model_get_vocab(model)

        def tokenise(text: str, add_special: bool) -> list[int]:
            encoded = text.encode()
            capacity = len(encoded) + 8
            ids = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(vocabulary, encoded, len(encoded), ids, capacity, add_special, True)
            return list(ids[:count])

        template = lib.llama_model_chat_template(model, None)
        yield _Reader(
            f"llama.cpp (llama-cpp-python {lib.__version__})",
            lib.llama_vocab_n_tokens(vocabulary),
            lib.llama_vocab_eos(vocabulary),
            lib.llama_vocab_get_add_bos(vocabulary),
            template.decode() if template else None,
            tokenise,
        )
    finally:
        if model:
            lib.llama_model_free(model)
        lib.llama_log_set(callback, data)
