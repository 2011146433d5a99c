"""What the engine is asked for, and what it delivers."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from tsugiki.serve.sampling import SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """None if a request wants no new token."""
    finish_reason: str | None = None
    """"stop": an end token or a stop string; "length": `max_tokens`. None if more follows."""


@dataclass(frozen=True)
class Failed:
    """The request has failed; nothing more follows."""

    error: BaseException


Company: TypeAlias = Literal["mixed", "same", "alone"]
"""With which rows those of an adapter can be in a batch: with all, with those of the same adapter, or with none."""

Event: TypeAlias = PromptScores | Output | Failed


@dataclass(eq=False)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    """At least one token."""
    tokenizer: "PreTrainedTokenizerBase"
    max_tokens: int
    deliver: Callable[[Event], None]
    """Called in the engine's thread; must return at once."""
    adapter: str | None = None
    """The adapter's name in the model; None: the base alone."""
    content: str | None = None
    """The digest of what the adapter computes, "" for the base; None: its keys and values are not kept for others."""
    model_name: str = ""
    """What the request calls the adapter or the base, and the base for a mix; for metrics."""
    company: Company = "mixed"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops: Sequence[str] = ()
    ends: Collection[int] = ()
    """Tokens that end the text."""
    min_tokens: int = 0
    """None of `ends` is chosen before as many new tokens."""
    logprobs: int | None = None
    """How many of the most probable tokens are delivered with each token; None: no log-probabilities."""
    prompt_logprobs: bool = False
    """Deliver `PromptScores` first."""
    since: float = field(default_factory=time.monotonic)
    """When it came, as `time.monotonic` counts; it may have waited for its adapter since."""
    cancelled: bool = False
