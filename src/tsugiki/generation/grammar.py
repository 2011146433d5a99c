"""Restrict what a row may write: JSON that a schema allows, a match of a regular expression, or one of some texts.

A grammar defines which bytes may come next, and a vocabulary which bytes each token has. llguidance, which the extra
`serve` installs, computes from both which tokens may come next.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MOST_KEPT = 64
"""The maximum number of compiled grammars in memory."""
_LARGEST = 120_000  # characters, as in OpenAI's API
_TOKENIZED = 200
"""The model's tokenizer splits at most this many of the characters that the grammar prescribes, at each step."""
_COMPACT: Any = {"whitespace_flexible": False}
"""No white space stands between parts of JSON, since it takes tokens, and small models would write much of it."""
_MISSING = marked("the vocabulary has no tokens for the text that it prescribes")
_ENDLESS = marked("no text can fit it, because it refers to itself without an end")
_COMPLEX = marked("it is too complex; write it shorter, with smaller numbers of repetitions")
_DIGITS = b"0123456789"
_MOST_DIGITS, _MOST_DECIMALS, _MOST_OF_A_SECOND, _MOST_OF_AN_EXPONENT = 19, 17, 6, 3
"""The digits of a 64-bit integer, after the point of a double, of a microsecond, and of the largest double's power."""
_SECONDS = re.compile(rb":\d\d\.$")
_EXPONENT = re.compile(rb"[eE][+-]?$")
_MAY_GROW = tuple(bytes([letter]) for letter in _DIGITS + b".")
_OF_JSON = re.compile(r'"json_schema":\{|^\w+: %json ', re.MULTILINE)
"""In the grammars of JSON texts; elsewhere the quotation marks are escaped, or a line does not begin so."""
_PROBE = '{"名前": "a b", "年": [1, null]}'
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def json_grammar(schema: Mapping[str, Any] | Literal[True] | str) -> str:
    """Return the grammar of the JSON texts that a JSON schema allows, without white space between their parts."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    if text.strip() == "true":
        text = "{}"  # it allows any value, too, and takes options
    return _converted(partial(_llguidance().LLMatcher.grammar_from_json_schema, text, defaults=_COMPACT))


def regex_grammar(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression matches from beginning to end."""
    return _converted(partial(_llguidance().LLMatcher.grammar_from_regex, pattern))


def _converted(convert: Callable[[], str]) -> str:
    try:
        return convert()
    except ValueError as error:  # such as a lone surrogate
        raise _unusable(str(error)) from error


def choice_grammar(texts: Sequence[str]) -> str:
    """Return the grammar of some texts."""
    return "start: " + " | ".join(map(json.dumps, texts))


def room_for_digits(text: bytes) -> tuple[int, bool]:
    """Return how many digits may follow the beginning of a JSON text, and whether it ends within a string.

    A schema seldom limits the digits of a number, and a model could write them for ever. In a string, digits are
    limited after the seconds of a time alone.
    """
    before = text.rstrip(_DIGITS)
    in_string = re.sub(rb"\\.", b"", text).count(b'"') % 2 == 1
    most = _MOST_DECIMALS if before.endswith(b".") else _MOST_DIGITS
    if _EXPONENT.search(before[-2:]):
        most = _MOST_OF_AN_EXPONENT
    if in_string:
        most = _MOST_OF_A_SECOND if _SECONDS.search(before[-4:]) else len(text) + _MOST_DIGITS
    return most - (len(text) - len(before)), in_string


class Matcher:
    """The state of a row's text in a grammar."""

    def __init__(self, matcher: "LLMatcher", vocabulary: "_Vocabulary", is_json: bool, text: bytes = b"") -> None:
        """Create it for the state after a `text`; in one that `is_json`, numbers have limits (`room_for_digits`)."""
        self._matcher, self._vocabulary, self._is_json, self._text = matcher, vocabulary, is_json, text

    def copy(self) -> "Matcher":
        """Return a copy in the same state, for another row."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self._is_json, self._text)

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow it."""
        return self._matcher.is_stopped()

    def restrict(self, scores: Tensor, ends: Collection[int]) -> None:
        """Set the scores, [vocabulary], of the tokens that cannot come next to -inf, in place.

        `ends`, the tokens that end the text, can come where it is complete and nowhere else.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check()
        words = self._vocabulary.eos_token_id
        forbidden = torch.ones(len(scores), dtype=torch.bool)
        torch.eq(allowed[:words], 0, out=forbidden[:words])
        forbidden[[token for token in ends if token < len(scores)]] = not self._matcher.is_accepting()
        if forbidden.all():
            raise _unusable(_MISSING)
        if self._is_json and self._text.endswith(_MAY_GROW):
            self._limit_digits(forbidden)
        scores.masked_fill_(forbidden.to(scores.device), -torch.inf)

    def _limit_digits(self, forbidden: Tensor) -> None:
        """Forbid more digits than a number needs, in place, unless the grammar demands them.

        It does where nothing else can follow, such as in a long constant. A string that can end here is free text.
        """
        room, in_string = room_for_digits(self._text)
        found = forbidden.clone()
        found[: len(self._vocabulary.digits)] |= self._vocabulary.digits > room
        if not found.all() and not (in_string and not forbidden[self._vocabulary.quotes].all()):
            forbidden.copy_(found)

    def advance(self, token: int) -> None:
        """Append a token to the text."""
        if not self._matcher.consume_token(token):  # it was allowed, so what must follow has no token
            self._check()
            raise _unusable(_MISSING)
        self._text += self._vocabulary.tokens[token]

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error()
            known = {"NoExtension": _MISSING, "lexer error: too many": _COMPLEX}
            raise _unusable(next((known[start] for start in known if reason.startswith(start)), reason))


class Grammars:
    """Compiles grammars for the tokens of a vocabulary, and keeps the last ones. Any thread may call it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: int) -> None:
        """Create it for a model with `words` tokens; the vocabulary is built for the first grammar."""
        self._tokenizer, self._words = tokenizer, words
        self._vocabulary: _Vocabulary | None = None
        self._kept: dict[str, Matcher] = {}  # least recently used first

    def find(self, grammar: str) -> Matcher | None:
        """Return a matcher of a grammar that was compiled before, if it is kept."""
        known = self._kept.pop(grammar, None)
        if known is None:
            return None
        self._kept[grammar] = known
        return known.copy()

    def compile(self, grammar: str) -> Matcher:
        """Return a matcher of a grammar, which takes up to a second for the first one."""
        library = _llguidance()
        if len(grammar) > _LARGEST:
            raise _unusable(_("it is too large: more than {count:,} characters", count=_LARGEST))
        if self._vocabulary is None:
            self._vocabulary = _Vocabulary(self._tokenizer, self._words)
        compiled = library.LLMatcher(self._vocabulary.native, grammar, log_level=0)
        matcher = Matcher(compiled, self._vocabulary, is_json=_OF_JSON.search(grammar) is not None)
        matcher._check()
        matcher._matcher.compute_bitmask()  # copies share the lexer states that this builds
        if matcher._matcher.is_error():
            of_bytes = library.LLMatcher(library.LLTokenizer("byte"), grammar, log_level=0)
            of_bytes.compute_bitmask()
            if of_bytes.is_error():  # with any vocabulary
                raise _unusable(_ENDLESS)
        matcher._check()
        self._kept[grammar] = matcher
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return matcher.copy()


class _Vocabulary:
    """The vocabulary for llguidance, with an additional end token, because the end tokens of requests differ."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [*token_bytes(tokenizer, words), b""]
        self.eos_token_id = words
        self.special_token_ids = [words]
        self.native = _llguidance().LLTokenizer(self)
        self.digits = torch.tensor([len(token) - len(token.lstrip(_DIGITS)) for token in self.tokens[:words]])
        """With how many digits each token begins."""
        self.quotes = [place for place, token in enumerate(self.tokens) if token.startswith(b'"')]
        """The tokens that can end a string."""

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text that a grammar prescribes, as the model's tokenizer splits it.

        Some tokenizers begin a text with a space. Then it is the end of a longer text, or made of the longest tokens.
        """
        head, rest = text[:_TOKENIZED], text[_TOKENIZED:]
        for before in ("", "\n"):
            ids: list[int] = self._tokenizer(before + head, add_special_tokens=False, verbose=False).input_ids
            for start in range(min(3, len(ids))):
                if b"".join(self.tokens[token] for token in ids[start:]) == head.encode():
                    return [*ids[start:], *self.native.greedy_tokenize(rest)]
        return [*self.native.greedy_tokenize(text)]


def token_bytes(tokenizer: PreTrainedTokenizerBase, words: int) -> list[bytes]:
    """Return the bytes of the first `words` tokens within a text; none for a token that adds nothing to a text.

    The text of a token is what a second one adds, because some tokenizers drop the space at the beginning of a text. A
    part of a character has no text; its name tells the byte, `<0xE6>`, or the bytes, a letter for each.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def of(name: str | None, text: str) -> bytes:
        if name is None or _INCOMPLETE not in text:
            return text.encode()
        if len(name) == 6 and name.startswith("<0x"):
            return bytes.fromhex(name[3:5])
        return bytes(alphabet[letter] for letter in name) if alphabet.keys() >= set(name) else b""

    found = list(range(min(words, len(tokenizer))))
    once, twice = (_texts(tokenizer, [[token] * count for token in found]) for count in (1, 2))
    names = tokenizer.convert_ids_to_tokens(found)
    texts = [two[len(one) :] for one, two in zip(once, twice, strict=True)]
    tokens = [of(*one) for one in zip(names, texts, strict=True)]
    probe = tokenizer(_PROBE, add_special_tokens=False).input_ids
    joined = b"".join(tokens[token] for token in probe if token < len(tokens)).decode(errors="replace")
    if joined.removeprefix(" ") != _texts(tokenizer, [probe])[0].removeprefix(" "):
        raise TsugikiError("grammars need a tokenizer whose tokens have the same text at each place")
    return tokens + [b""] * (words - len(tokens))


def _texts(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """Return the texts of rows of tokens, as `TextStream` decodes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return list(backend.decode_batch(rows, skip_special_tokens=True))
    return [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise TsugikiError("grammars need the llguidance package: pip install 'tsugiki[serve]'") from error
    return llguidance


def _unusable(reason: str) -> TsugikiError:
    """Return the error for a grammar, with the most informative line of the library's message."""
    lines = reason.splitlines() or [""]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return TsugikiError("the grammar cannot be used: {reason}", reason=_(line[:200]))
