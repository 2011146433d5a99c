"""Choose the next token of a row, with the row's own settings and random numbers, and decode its tokens.

Only complete characters are decoded, and no text that may belong to a stop string.
"""

import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.language import _

if TYPE_CHECKING:
    from tsugiki.generation.grammar import Matcher

LOWEST_TEMPERATURE = 1e-5
"""Lower ones are taken for 0, as in vLLM: logits that are divided by them need not be finite."""
_SMALLEST = 1e-300  # keeps 0 / 0 out, and changes no sum with another number
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_MOST_PARTS = 64  # after so many tokens without a complete character, there is none
_BEFORE = 6  # tokens of the prompt: some tokenizers drop the space at the beginning of a text


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are those of the commands; the server has those of OpenAI's API."""

    temperature: float = 0.7
    """Divides the logits. 0 always takes the most probable token, as does less than `LOWEST_TEMPERATURE`."""
    top_p: float = 0.9
    """Sample from the most probable tokens that together have this probability."""
    seed: int | None = 0
    """The same seed gives the same text; None: another text each time."""
    repetition_penalty: float | None = None
    """Divides positive logits of tokens that occur in the prompt or the new text, and multiplies negative ones. None:
    that of the model's generation settings (see `with_penalty_of`), and 1, which changes nothing, without one."""
    top_k: int = 0
    """Sample from this many of the most probable tokens; 0: from all."""
    min_p: float = 0.0
    """Sample from tokens that have at least this fraction of the largest probability."""
    presence_penalty: float = 0.0
    """Is subtracted from the logit of a token that was generated before."""
    frequency_penalty: float = 0.0
    """Is subtracted from the logit of a token once for each time that it was generated before."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Is added to the logits of these tokens."""
    grammar: str | None = None
    """What the text must keep to, as `json_grammar` returns it; the server compiles that of a request itself."""


def repetition_penalty_of(model: PreTrainedModel) -> float:
    """Return the repetition penalty of a model's generation settings; 1 if they have none."""
    return getattr(model.generation_config, "repetition_penalty", None) or 1.0


def with_penalty_of(model: PreTrainedModel, sampling: Sampling) -> Sampling:
    """Return the settings with the model's own repetition penalty if they have none."""
    if sampling.repetition_penalty is not None:
        return sampling
    return replace(sampling, repetition_penalty=repetition_penalty_of(model))


class Chooser:
    """Chooses the tokens of one row, independently of all other rows."""

    def __init__(self, settings: Sampling, matcher: "Matcher | None" = None, ends: Collection[int] = ()) -> None:
        """Create it; with a `matcher`, the text keeps to a grammar, and `ends` can only come where it is complete."""
        self.settings, self.matcher, self.ends = settings, matcher, ends
        self.seed = secrets.randbits(64) if settings.seed is None else settings.seed
        self.step = 0  # how many tokens were chosen
        self.penalties = LogitsProcessorList()
        if settings.repetition_penalty not in (None, 1):
            self.penalties.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        self.warpers = LogitsProcessorList(_warpers(settings))

    @property
    def finished(self) -> bool:
        """Whether the grammar allows no further token."""
        return self.matcher is not None and self.matcher.finished

    def choose(
        self, logits: Tensor, prompt: Sequence[int], generated: Sequence[int], forbidden: Collection[int] = ()
    ) -> int:
        """Return the next token by its logits, float32 [vocabulary], which stay as they are; none of `forbidden`."""
        token = self._choose(logits, prompt, generated, forbidden)
        self.step += 1
        if self.matcher is not None and token not in self.ends:
            self.matcher.advance(token)
        return token

    def _choose(
        self, logits: Tensor, prompt: Sequence[int], generated: Sequence[int], forbidden: Collection[int]
    ) -> int:
        settings, scores, device = self.settings, logits.clone(), logits.device
        if settings.logit_bias:
            scores[list(settings.logit_bias)] += torch.tensor(list(settings.logit_bias.values()), device=device)
        seen = torch.tensor([[*prompt, *generated] if self.penalties else []], dtype=torch.int64, device=device)
        scores = self.penalties(seen, scores[None])[0]
        if generated and (settings.presence_penalty or settings.frequency_penalty):
            counts = Counter(generated)
            penalties = [settings.presence_penalty + count * settings.frequency_penalty for count in counts.values()]
            scores[list(counts)] -= torch.tensor(penalties, device=device)
        if self.matcher is not None:
            self.matcher.restrict(scores, [token for token in self.ends if token not in forbidden])
        if forbidden:
            scores[[token for token in forbidden if token < len(scores)]] = -torch.inf
        if settings.temperature < LOWEST_TEMPERATURE:
            return int(scores.argmax())
        return draw_index(torch.softmax(self.warpers(seen, scores[None])[0], -1).cpu(), self.seed, self.step)


def draw_index(probabilities: Tensor, seed: int, step: int) -> int:
    """Return an index i that is drawn with probabilities p, [n], on the processor; they may have any sum.

        argmax_i p_i / E_i,   E_i = -log U_i

    This is the Gumbel-max trick (arXiv:1411.0030), without its logarithms of p. U_i depends on the seed (64 bits), the
    step (not negative) and i alone. So probabilities that differ by rounding nearly always give the same index, where
    one number that is compared with cumulative sums would give a neighbour: every change moves all later sums.
    """
    if not 0 < probabilities.sum() < torch.inf:
        raise ValueError(_("the probabilities of the next token are not finite; are the model's weights damaged?"))
    noise = np.random.Generator(np.random.SFC64([seed % 2**64, step])).random(len(probabilities))
    np.log(np.subtract(1, noise, out=noise), out=noise)  # in place: new memory takes longer than the logarithms
    noise -= _SMALLEST
    return int(np.divide(probabilities.numpy(), noise, out=noise).argmin())


def _warpers(settings: Sampling) -> list[LogitsProcessor]:
    if settings.temperature < LOWEST_TEMPERATURE:
        return []
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(settings.temperature))]
    if settings.top_k > 0:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0:
        warpers.append(MinPLogitsWarper(settings.min_p))
    return warpers


class TextStream:
    """The text of new tokens, up to the first stop string."""

    special = False
    """Whether the text has special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        """Create it for the tokens after a prompt; the text ends before the first of `stops`. None of them is empty."""
        self.tokenizer = tokenizer
        self.stops = stops
        self.stopped = False
        """Whether a stop string was found."""
        self._ids = list(prompt[-_BEFORE:])
        self._start, self._read = 0, len(self._ids)
        self._held = ""

    def add(self, token: int, may_stop: bool = True) -> str:
        """Add a token, and return the new text. Text that may be the beginning of a stop string is held back.

        Only if it `may_stop` can the text end with this token.
        """
        self._ids.append(token)
        self._held += self._new_text()
        return self._taken(self._possible_stop(), may_stop)

    def finish(self, may_stop: bool = True) -> str:
        """Return the text that was held back, up to a stop string. An incomplete character at the end is dropped."""
        if self.stopped:
            return ""
        self._held += self._tail().rstrip(_INCOMPLETE)
        return self._taken(0, may_stop)

    def _new_text(self) -> str:
        """Return the text since the last complete character; empty while the next one is incomplete."""
        may_complete = len(self._ids) - self._read < _MOST_PARTS
        if may_complete and self._decode(self._start, len(self._ids)).endswith(_INCOMPLETE):
            return ""
        text = self._tail()
        self._start, self._read = self._read, len(self._ids)
        return text

    def _tail(self) -> str:
        """Return the text of the tokens that have not been read.

        It is the difference that they make to the text before them, because a token's text depends on its neighbours.
        A prompt of tokens can end within a character, which then is part of the difference.
        """
        before, whole = self._decode(self._start, self._read), self._decode(self._start, len(self._ids))
        return whole[len(before if whole.startswith(before) else before.rstrip(_INCOMPLETE)) :]

    def _decode(self, start: int, stop: int) -> str:
        text: str = self.tokenizer.decode(
            self._ids[start:stop], skip_special_tokens=not self.special, clean_up_tokenization_spaces=False
        )
        return text

    def _possible_stop(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self.stops), default=0))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self.stops)), 0
        )

    def _taken(self, kept: int, may_stop: bool) -> str:
        """Return what was held back, without the last `kept` characters; if there is a stop string, what is before."""
        ends = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        self.stopped = may_stop and bool(ends)
        length = min(ends) if self.stopped else len(self._held) - kept
        text, self._held = self._held[:length], self._held[length:]
        return text
