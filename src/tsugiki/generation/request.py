"""The requests to the engine, their limits and states, and the events and errors that it delivers."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.errors import TsugikiError
from tsugiki.generation.sampling import Chooser, Sampling, TextStream
from tsugiki.language import flag

if TYPE_CHECKING:
    from tsugiki.generation.grammar import Matcher


class QueueFull(TsugikiError):
    """Too many requests wait; the client may try again."""


class WaitedTooLong(TsugikiError):
    """A request waited too long for its turn; the client may try again."""


class EngineStopped(TsugikiError):
    """The thread that owns the model is stopping or has stopped."""


@dataclass(frozen=True)
class Limits:
    """Limits on the requests and the memory of the engine."""

    rows: int = 16
    """Largest number of rows in a batch."""
    cache_bytes: int = 2_000_000_000
    """Largest size of the key-value cache: rows times the longest row, padding included."""
    waiting: int = 64
    """Largest number of waiting requests."""
    prefix_bytes: int = 500_000_000
    """Largest size of the prefix cache, whose keys and values are used for prompts with the same beginning; 0: none."""
    seconds: float = 60.0
    """How long a request may wait."""


def waited_too_long(seconds: float) -> WaitedTooLong:
    """Return the error for a request that has waited longer than allowed."""
    return WaitedTooLong("the request waited for more than {seconds:g} s", seconds=seconds)


def engine_stopped() -> EngineStopped:
    """Return the error for requests that cannot be answered any more."""
    return EngineStopped("the server is stopping")


def queue_full(limits: Limits) -> QueueFull:
    """Return the error for requests for which the queue has no place."""
    return QueueFull("the queue is full ({flag}); try again later", flag=flag("max_waiting", str(limits.waiting)))


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability, before temperature and penalties."""

    token: int
    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens and their log-probabilities, the most probable first."""


@dataclass(frozen=True)
class PromptScores:
    """The log-probabilities of a prompt's tokens."""

    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class Output:
    """A new token. The text can belong to earlier tokens, and can be empty."""

    text: str
    token: ScoredToken | None
    """None if the request asks for no new tokens."""
    finish_reason: str | None = None
    """"stop": an end token, a stop string, or the end of a grammar; "length": `max_tokens`. None if more follows."""


@dataclass(frozen=True)
class Failed:
    """The request has failed; nothing more follows."""

    error: BaseException


BatchMode: TypeAlias = Literal["mixed", "same", "alone"]
"""Which rows can be in a batch with a row of an adapter: all ("mixed"), those of the same adapter ("same"), or none
("alone")."""

Event: TypeAlias = PromptScores | Output | Failed


@dataclass(eq=False)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    """At least one token."""
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    deliver: Callable[[Event], None]
    """Called in the thread that computes; must return at once."""
    adapter: str | None = None
    """The adapter's name in the model; None: the base alone."""
    content: str | None = None
    """The adapter's digest, "" for the base; None: do not put its keys and values into the prefix cache."""
    batch_mode: BatchMode = "mixed"
    sampling: Sampling = field(default_factory=Sampling)
    matcher: "Matcher | None" = None
    """Restricts the text to a grammar. It belongs to this request alone, because it advances with its text."""
    stops: Sequence[str] = ()
    special: bool = False
    """Whether the text has the special tokens that are chosen."""
    ends: Collection[int] = ()
    """Tokens that end the text."""
    min_tokens: int = 0
    """Number of new tokens before which no token of `ends` is chosen, and no stop string counts, as in vLLM."""
    logprobs: int | None = None
    """How many of the most probable tokens are delivered with each token; None: no log-probabilities."""
    prompt_logprobs: bool = False
    """Whether `PromptScores` are delivered first."""
    since: float = field(default_factory=time.monotonic)
    """When it arrived, in seconds of `time.monotonic`; it may have waited for its adapter since then."""
    cached_tokens: int = 0
    """How many tokens of the prompt were found in the prefix cache."""
    cancelled: bool = False


@dataclass(eq=False)
class Row:
    """A request that waits or is computed."""

    request: Request
    chooser: Chooser = field(init=False)
    text: TextStream = field(init=False)
    generated: list[int] = field(default_factory=list)
    since: float = field(init=False)
    """When it last began to wait, in seconds of `time.monotonic`."""
    separate: bool = False
    """Whether it is computed alone, because a batch with it has failed."""
    scored: bool = False
    """Whether the log-probabilities of the prompt were delivered."""
    scores: list[ScoredToken] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.chooser = Chooser(request.sampling, request.matcher, request.ends)
        self.text = TextStream(request.tokenizer, request.prompt, request.stops)
        self.text.special = request.special
        self.since = request.since

    @property
    def tokens(self) -> list[int]:
        """The tokens of the prompt and of the generated text."""
        return [*self.request.prompt, *self.generated]

    @property
    def length(self) -> int:
        """Number of `tokens`."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be generated."""
        return self.request.max_tokens - len(self.generated)

    @property
    def turn(self) -> object:
        """A key that is the same for rows that can share a batch."""
        if self.separate or self.request.batch_mode == "alone":
            return self
        return None if self.request.batch_mode == "mixed" else self.request.adapter
