"""Does a GGUF file cut text as the tokenizer that a model was trained with? Asked on fixed prompts.

Where llama.cpp is installed (the package llama-cpp-python) it is asked itself. Where it is not, the file is read back
as a base is (`gguf_base.tokenizer`, which tests hold to llama.cpp), and of kinds that are not read so, what it says.
"""

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from tsugiki.base.gguf.file import GgufHeader, read_header
from tsugiki.base.gguf.tokenizer import SUPPORTED_TOKENIZERS, build_tokenizer
from tsugiki.data.encoding import document_end, document_start, encode
from tsugiki.errors import TsugikiError
from tsugiki.export.vocabulary import adds_start, other_normalizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
"""Compared in every export, beside each special token inside a text."""

_SPECIAL = 20  # Gemma has thousands
_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [
        {"role": "system", "content": "簡潔に答える。"},
        {"role": "user", "content": "花は？"},
        {"role": "assistant", "content": "まだ咲かない。"},
        {"role": "user", "content": " And summer?\n"},
    ],
    [
        {"role": "user", "content": "花は？"},
        {"role": "assistant", "content": "まだ咲かない。"},
        {"role": "user", "content": " And summer?\n"},
    ],
)


_Cut: TypeAlias = Callable[[str, bool], list[int]]
"""Cuts a text, in which special tokens are such; says whether a begin token is put before."""


@dataclass(frozen=True)
class TokenComparison:
    """What came of it."""

    asked: str
    """Who cut the text: llama.cpp, or nobody."""
    prompts: int
    """How many were cut by both."""
    problems: tuple[str, ...]
    """What differs; empty where all is the same."""
    notes: tuple[str, ...] = ()
    """What would differ on text that is not among the prompts."""


def compare_tokens(tokenizer: "PreTrainedTokenizerBase", path: Path) -> TokenComparison:
    """Compare tokens, begin and end tokens and chat template of a GGUF file with the tokenizer's.

    Raises:
        TsugikiError: llama.cpp cannot read the file.
    """
    notes = tuple(
        f"llama.cpp does not normalise text ({name}) as this tokenizer does" for name in other_normalizers(tokenizer)
    )
    with _llama_cpp(path) if _has_llama_cpp() else _read_back(path) as (asked, said, cut):
        problems = _differing_words(tokenizer, said)
        special = [tokenizer.decode([token]) for token in sorted(tokenizer.all_special_ids) if token < said.tokens]
        prompts = [*PROMPTS, *(f"春{token}は {token}\n" for token in special[:_SPECIAL])] if cut else []
        if cut:
            for prompt, ours in zip(prompts, encode(tokenizer, prompts), strict=True):
                problems += _difference(prompt, ours, cut(prompt, False))
            start = [document_start(tokenizer) if tokenizer.chat_template is None else tokenizer.bos_token_id]
            expected = (start if adds_start(tokenizer) else []) + encode(tokenizer, ["春"])[0]
            problems += _difference("春", expected, cut("春", True), " as a prompt")
            problems += _compare_templates(tokenizer, said.template, cut)
    return TokenComparison(asked, len(prompts), tuple(problems), notes)


@dataclass(frozen=True)
class _Said:
    """What a file says of its tokenizer."""

    tokens: int
    end: int
    adds_start: bool
    template: str | None


def _has_llama_cpp() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


@contextmanager
def _read_back(path: Path) -> Iterator[tuple[str, _Said, _Cut | None]]:
    """What the file says, and its tokenizer as a base's is read from a GGUF file, where it is of a kind that is."""
    header = read_header(path)
    end, start = (header.metadata[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "bos"))
    said = _Said(
        len(header.metadata["tokenizer.ggml.tokens"]),
        end,
        bool(header.metadata.get("tokenizer.ggml.add_bos_token")),
        header.metadata.get("tokenizer.chat_template"),
    )
    back = _tokenizer_of(path, header)
    if back is None:
        yield "the file alone (llama-cpp-python is not installed)", said, None
        return

    def cut(text: str, add: bool) -> list[int]:
        return ([start] if add and said.adds_start else []) + encode(back, [text])[0]

    yield "the file, read back (llama-cpp-python is not installed)", said, cut


def _tokenizer_of(path: Path, header: GgufHeader) -> "PreTrainedTokenizerBase | None":
    """That of a GGUF file; None where it is of a kind that cannot be read back."""
    if header.metadata["tokenizer.ggml.model"] not in SUPPORTED_TOKENIZERS:
        return None
    with TemporaryDirectory() as folder:
        try:
            return build_tokenizer(path.absolute(), header, Path(folder))
        except Exception:  # anything: one without merges, say
            return None


def _differing_words(tokenizer: "PreTrainedTokenizerBase", said: _Said) -> list[str]:
    template = tokenizer.chat_template
    default = template.get("default") if isinstance(template, dict) else template
    pairs = [
        ("the end token", said.end, document_end(tokenizer)),
        ("the chat template", said.template, default),
        ("whether a prompt begins with the begin token", said.adds_start, adds_start(tokenizer)),
    ]
    return [
        f"{what} is {_short(theirs)} in the file and {_short(ours)} here"
        for what, theirs, ours in pairs
        if theirs != ours
    ]


def _compare_templates(tokenizer: "PreTrainedTokenizerBase", template: str | None, cut: _Cut) -> list[str]:
    """A conversation as each renders and cuts it."""
    if tokenizer.chat_template is None or template is None or not _has_llama_cpp():
        return []
    from jinja2 import TemplateError

    formatter = importlib.import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter(
        template, eos_token=tokenizer.eos_token or "", bos_token=tokenizer.bos_token or ""
    )
    for conversation in _CONVERSATIONS:
        try:
            ours = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except TemplateError:  # some have no system role
            continue
        theirs = formatter(messages=conversation).prompt
        if ours != theirs:
            return [f"a conversation is {_short(theirs)} in llama.cpp and {_short(ours)} here"]
        return _difference(ours, encode(tokenizer, [ours])[0], cut(theirs, False))
    return []


def _difference(text: str, ours: Sequence[int], theirs: Sequence[int], where: str = "") -> list[str]:
    if list(ours) == list(theirs):
        return []
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return [
        f"{_short(text)}{where} is {len(theirs)} tokens in the file and {len(ours)} here; from token {first + 1} on "
        f"{list(theirs[first : first + 4])} and {list(ours[first : first + 4])}"
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[0]


@contextmanager
def _llama_cpp(path: Path) -> Iterator[tuple[str, _Said, _Cut]]:
    """What llama.cpp reads in the file, and how it cuts a text."""
    lib: Any = importlib.import_module("llama_cpp")
    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    silent = lib.llama_log_callback(lambda level, text, data: None)  # it says much
    lib.llama_log_set(silent, None)
    model = None
    try:
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise TsugikiError(f"llama.cpp cannot read {path}")
        vocabulary = lib.llama_model_get_vocab(model)

        def cut(text: str, add: bool) -> list[int]:
            coded = text.encode()
            room = len(coded) + 8
            ids = (lib.llama_token * room)()
            count = lib.llama_tokenize(vocabulary, coded, len(coded), ids, room, add, True)
            return list(ids[:count])

        template = lib.llama_model_chat_template(model, None)
        yield (
            f"llama.cpp (llama-cpp-python {lib.__version__})",
            _Said(
                lib.llama_vocab_n_tokens(vocabulary),
                lib.llama_vocab_eos(vocabulary),
                lib.llama_vocab_get_add_bos(vocabulary),
                template.decode() if template else None,
            ),
            cut,
        )
    finally:
        if model:
            lib.llama_model_free(model)
        lib.llama_log_set(before, data)
