"""The rows of a batch, and which rows a batch can have."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError, error_text
from tsugiki.generation.key_value_cache import CachedRows, compute, padded, selected
from tsugiki.generation.prefixes import BLOCK, Prefix, rows_with_prefixes
from tsugiki.generation.request import BatchMode, Row, ScoredToken
from tsugiki.lowbit.quantized_layer import QuantizedLayer
from tsugiki.model.context import rope_depends_on_length
from tsugiki.model.inference import same_to_rounding

_PIECE = 512  # tokens of prompts that one step computes, padding included
_SCORED_PIECE = 128  # the same if logits of all of them are wanted
_ROUNDED = 0.15
"""The share of the norm by which the logits of a model with quantised layers may differ: the last bit of a hidden state
in 16 bits may decide which way it is rounded to 8 bits. SmolLM2 135M in int8 has 0.01 to 0.07."""
_MULTIPLE = 16
"""The number of columns that are computed is a multiple of this, except for rows that must not be padded. A processor
compiles its products for each shape of a batch, which takes time and memory."""


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
    """Tokens of the prompts, padded on the left, [rows, tokens], int64."""
    mask: Tensor
    """1 for a token, 0 for padding, [rows, tokens], int64."""
    cached: CachedRows
    done: int = 0
    """Number of columns of `ids` that are in the cache."""

    @property
    def left(self) -> int:
        """Number of columns of `ids` that are not in the cache."""
        return self.ids.shape[1] - self.done

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of a prompt are wanted, and so the logits of all its tokens."""
        return any(row.request.prompt_logprobs and not row.scored for row in self.rows)

    @property
    def next_width(self) -> int:
        """Number of columns to compute next."""
        count = len(self.rows)
        if self.is_scored:
            return min(self.left, max(1, _SCORED_PIECE // count))
        return min(self.left, max(1, _PIECE // count // _MULTIPLE) * _MULTIPLE)


def prompts_width(rows: Sequence[Row]) -> int:
    """Return how many columns the prompts of rows take."""
    longest = max(row.length for row in rows)
    return longest if rows[0].request.batch_mode == "alone" else -(-longest // _MULTIPLE) * _MULTIPLE


def begin_prompts(rows: list[Row], prefixes: Sequence[Prefix], device: torch.device) -> Arriving:
    """Return rows whose prompts are to be computed from the end of their prefixes on, which are in the cache.

    The same number of columns is left for all rows, so that of some prefixes only a part may be used.
    """
    ids, mask = padded([row.tokens for row in rows], prompts_width(rows), device)
    left = max(row.length - len(prefix) * BLOCK for row, prefix in zip(rows, prefixes, strict=True))
    done = (ids.shape[1] - left) // _MULTIPLE * _MULTIPLE
    cached = rows_with_prefixes(mask, prefixes, done) if done else CachedRows(mask[:, :0])
    return Arriving(rows, ids, mask, cached, done)


def without_cancelled(arriving: Arriving) -> Arriving | None:
    """Return `arriving` without the rows of cancelled requests; None if no row is left."""
    kept = [index for index, row in enumerate(arriving.rows) if not row.request.cancelled]
    if len(kept) == len(arriving.rows):
        return arriving
    if not kept:
        return None
    rows = [arriving.rows[index] for index in kept]
    cached = selected(arriving.cached, kept)
    return Arriving(rows, arriving.ids[kept], arriving.mask[kept], cached, arriving.done)


def scored_token(logprobs: Tensor, token: int, count: int) -> ScoredToken:
    """Return a token with its log-probability and the `count` most probable tokens, of logprobs [vocabulary]."""
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return ScoredToken(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def score_prompts(arriving: Arriving, logits: Tensor, start: int) -> None:
    """Append the log-probabilities of the prompts' tokens that follow the tokens of a piece, which begins at `start`.

    The logits are those of the next token for each token of the piece, [rows, tokens, vocabulary].
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


def find_batch_mode(model: PreTrainedModel, several: bool = True) -> BatchMode:
    """Return "mixed" if a short row has the same logits in a batch with a longer one as alone, otherwise "alone".

    The model is tested in its present state, with its active adapter, if any. A single row is always "alone". A model
    without an ordinary key-value cache, or with other logits with the cache than without, is an error.
    """
    vocabulary = model.config.get_text_config().vocab_size
    lengths = (5, 2) if several else (5,)
    prompts = [[(7 * place + 3) % vocabulary for place in range(length)] for length in lengths]
    try:
        alone = [_two_steps(model, [prompt]) for prompt in prompts]
        plain = [_without_cache(model, prompt) for prompt in prompts]
    except Exception as error:  # a model's own code may raise anything
        raise TsugikiError(
            "it cannot be served, because it has no ordinary cache of keys and values: {error}", error=error_text(error)
        ) from error
    rounds_inputs = any(isinstance(module, QuantizedLayer) for module in model.modules())
    same = partial(same_to_rounding, at_least=_ROUNDED if rounds_inputs else 0.0)
    if not all(same(one, other) for one, other in zip(alone, plain, strict=True)):
        raise TsugikiError("it cannot be served, because it computes something else with a cache of keys and values")
    if not several or rope_depends_on_length(model):
        return "alone"
    try:
        together = _two_steps(model, prompts)
    except Exception:
        return "alone"
    return "mixed" if all(same(row, one[0]) for row, one in zip(together, alone, strict=True)) else "alone"


def _two_steps(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits after some prompts and after one more token, [rows, 2, vocabulary]."""
    ids, mask = padded(prompts, max(map(len, prompts)), model.device)
    cached = CachedRows(mask)
    first = compute(model, cached, ids)
    cached.mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.cat([first, compute(model, cached, ids[:, -1:])], 1)


def _without_cache(model: PreTrainedModel, prompt: Sequence[int]) -> Tensor:
    """Return what `_two_steps` returns for one prompt."""
    ids = torch.tensor([[*prompt, prompt[-1]]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[:, -2:]
