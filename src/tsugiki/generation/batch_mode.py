"""Determine whether rows of different lengths can be computed in one batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsugiki.errors import TsugikiError, error_text
from tsugiki.generation.request import BatchMode
from tsugiki.generation.rows import CachedRows, compute, padded
from tsugiki.language import _
from tsugiki.model.context import rope_depends_on_length
from tsugiki.model.inference import same_to_rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_batch_mode(model: "PreTrainedModel") -> BatchMode:
    """Return "mixed" if a short row has the same logits in a batch with a longer one as alone, otherwise "alone".

    The model is tested in its present state, with its active adapter, if any.

    Raises:
        TsugikiError: the model has no ordinary key-value cache, or its logits with the cache differ from those without.
    """
    vocabulary = model.config.get_text_config().vocab_size
    prompts = [[(7 * place + 3) % vocabulary for place in range(length)] for length in (5, 2)]
    try:
        alone = [_two_steps(model, [prompt]) for prompt in prompts]
        plain = [_without_cache(model, prompt) for prompt in prompts]
    except Exception as error:  # a model's own code may raise anything
        raise TsugikiError(
            _("it cannot be served, because it has no ordinary cache of keys and values: {error}").format(
                error=error_text(error)
            )
        ) from error
    if not all(same_to_rounding(one, other) for one, other in zip(alone, plain, strict=True)):
        raise TsugikiError(_("it cannot be served, because it computes something else with a cache of keys and values"))
    if rope_depends_on_length(model):
        return "alone"
    try:
        together = _two_steps(model, prompts)
    except Exception:
        return "alone"
    same = all(same_to_rounding(row, one[0]) for row, one in zip(together, alone, strict=True))
    return "mixed" if same else "alone"


def _two_steps(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits after some prompts and after one more token, [rows, 2, vocabulary]."""
    ids, mask = padded(prompts, max(map(len, prompts)), model.device)
    cached = CachedRows(mask)
    first = compute(model, cached, ids)
    cached.mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.cat([first, compute(model, cached, ids[:, -1:])], 1)


def _without_cache(model: "PreTrainedModel", prompt: Sequence[int]) -> Tensor:
    """Return what `_two_steps` returns for one prompt."""
    ids = torch.tensor([[*prompt, prompt[-1]]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[:, -2:]
