"""The rows of a batch, while they wait and while they are computed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsugiki.serve.metrics import Timing
from tsugiki.serve.request import Request, ScoredToken
from tsugiki.serve.rows import CachedRows, selected
from tsugiki.serve.sampling import Chooser
from tsugiki.serve.text import TextStream


@dataclass(eq=False)
class Row:
    """A request that waits or is computed."""

    request: Request
    chooser: Chooser
    text: TextStream
    generated: list[int] = field(default_factory=list)
    since: float = field(init=False)
    """When it began to wait, for the last time, as `time.monotonic` counts."""
    timing: Timing = field(init=False)
    separate: bool = False
    """Computed without others, because a batch with it has failed."""
    scored: bool = False
    """Whether the log-probabilities of the prompt were delivered."""
    scores: list[ScoredToken] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.since = self.request.since
        self.timing = Timing(self.request.model_name)

    @property
    def tokens(self) -> list[int]:
        """The prompt and what was generated."""
        return [*self.request.prompt, *self.generated]

    @property
    def length(self) -> int:
        """How many tokens these are."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def remaining(self) -> int:
        """How many more tokens may be generated."""
        return self.request.max_tokens - len(self.generated)

    @property
    def turn(self) -> object:
        """Rows of one batch have the same."""
        if self.separate or self.request.company == "alone":
            return self
        return None if self.request.company == "mixed" else self.request.adapter


@dataclass
class Batch:
    """Rows with their keys and values."""

    rows: list[Row]
    cached: CachedRows


@dataclass
class Arriving:
    """Rows whose prompts are being computed."""

    rows: list[Row]
    ids: Tensor
    mask: Tensor
    cached: CachedRows
    done: int = 0
    """Columns of `ids` that are in the cache."""


def without_cancelled(arriving: Arriving) -> Arriving | None:
    """Return rows whose prompts are being computed without those of cancelled requests; None if none is left."""
    kept = [index for index, row in enumerate(arriving.rows) if not row.request.cancelled]
    if len(kept) == len(arriving.rows):
        return arriving
    if not kept:
        return None
    rows = [arriving.rows[index] for index in kept]
    cached = selected(arriving.cached, kept)
    return Arriving(rows, arriving.ids[kept], arriving.mask[kept], cached, arriving.done)


def scored_token(logprobs: Tensor, token: int, count: int) -> ScoredToken:
    """Return a token with its log-probability and the most probable tokens.

    Args:
        logprobs: of all tokens, [vocabulary].
        token: the token.
        count: how many of the most probable ones.
    """
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return ScoredToken(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def score_prompts(arriving: Arriving, logits: Tensor, start: int) -> None:
    """Append the scores of the tokens that follow a piece of the prompts.

    Args:
        arriving: the rows.
        logits: of the tokens that follow each token of the piece, [rows, tokens, vocabulary].
        start: the first column of the piece.
    """
    longest = arriving.ids.shape[1]
    for row, ids, of_row in zip(arriving.rows, arriving.ids.tolist(), logits, strict=True):
        if not row.request.prompt_logprobs or row.scored:
            continue
        if not row.scores:
            row.scores.append(ScoredToken(row.request.prompt[0], None))
        first = longest - row.length
        for column, logprobs in enumerate(torch.log_softmax(of_row.float(), -1).cpu(), start):
            if first <= column < longest - 1:
                row.scores.append(scored_token(logprobs, ids[column + 1], row.request.logprobs or 0))
