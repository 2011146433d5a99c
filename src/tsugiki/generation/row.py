"""A request while it waits for a place in a batch, and while it is computed."""

from dataclasses import dataclass, field

from tsugiki.generation.request import Request, ScoredToken
from tsugiki.generation.sampling import Chooser, TextStream


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
