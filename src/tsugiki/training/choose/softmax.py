"""Whether a run trains with sampled softmax (see `fast.vocabulary_sample`), and with which tokens.

    softmax    sampled if LoRA learns texts on a processor, and a step computes the logits of at most a third of the
               vocabulary; otherwise full

A step computes the logits of the targets in the training data, of the 8,192 tokens to which the base gives the highest
mean probability on a sample of the data, and of 8,192 other tokens, which are drawn for each step. The output layer of
Gemma 3 270M (262,144 tokens) takes two thirds of the multiplications of a step; with sampled softmax, a step takes 0.56
of the time, and the validation loss ends about 0.2 % higher. Without the likely tokens it ends 1 % higher, because
the estimate has a higher variance (docs/training-evidence.md). Evaluations always use the whole vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.vocabulary_sample import can_sample
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.model.linear import features
from tsugiki.model.undo import base_of
from tsugiki.training.settings.config import RunConfig

SAMPLED = "sampled"
_LIKELY, _DRAWN = 8192, 8192  # tokens
"""The tokens with the highest probability that each step computes, and those that are drawn for it."""
_LARGEST_SHARE = 1 / 3  # of the vocabulary; a step of SmolLM2 (49,152 tokens) takes as long with a quarter of it


def samples_vocabulary(
    asked: str | None, before: Mapping[str, Any], model: PreTrainedModel, blocks: Blocks, can_choose: bool
) -> bool:
    """Return whether a run uses sampled softmax, if its model supports it.

    `asked` is the setting `softmax`, and `before` has the values that a resumed run has chosen, which does the same as
    before. `can_choose`: it trains LoRA on texts, and the whole model is on a processor.
    """
    if "steps" in before:
        return before.get("softmax") == SAMPLED
    if asked is not None:
        return asked == SAMPLED
    most = _LARGEST_SHARE * vocabulary_of(model)
    if not can_choose or most < _LIKELY + _DRAWN:
        return False  # without looking at all tokens of the data
    return int(is_target(blocks, vocabulary_of(model)).sum()) + _LIKELY + _DRAWN <= most


@dataclass(frozen=True)
class SampledTokens:
    """The tokens whose logits the steps of a run compute."""

    kept: Tensor
    """The ids of those that every step computes, int64, in ascending order."""
    drawn: int
    """How many others each step draws."""
    vocabulary: int


def sampled_tokens(
    config: RunConfig,
    adapter_config: Any,
    model: PreTrainedModel,
    blocks: Blocks,
    probabilities: Tensor,
    in_shards: bool,
) -> SampledTokens | None:
    """Return the tokens for a model that was made trainable; None if it does not support sampled softmax.

    `probabilities` are the mean ones of the base on a sample of the data; `in_shards`: the weights will be split over
    processes. If the settings ask for sampled softmax, the model must support it.
    """
    is_lora = isinstance(adapter_config, LoraConfig)
    if is_lora and not in_shards and has_chunked_loss(model) and can_sample(head_of(model)):
        return SampledTokens(kept_tokens(blocks, probabilities, _LIKELY), _DRAWN, vocabulary_of(model))
    if config.softmax is None:
        return None
    message = _(
        "softmax sampled needs LoRA and an output layer that is frozen, not in shards, and of floats or in int8; "
        "leave softmax out"
    )
    raise TsugikiError(message)


def is_target(blocks: Blocks, vocabulary: int) -> Tensor:
    """Return whether each token of the vocabulary is a target in these rows, bool [vocabulary]."""
    found, store = torch.zeros(vocabulary, dtype=torch.bool), blocks.store
    for start, length in zip(blocks.starts.tolist(), blocks.lengths.tolist(), strict=True):
        segment = slice(start, start + length)
        found[torch.from_numpy(store.ids[segment][store.loss_mask[segment].astype(bool)].astype(np.int64))] = True
    return found


def kept_tokens(blocks: Blocks, mean_probabilities: Tensor, likely: int) -> Tensor:
    """Return the ids of the targets in these rows and of the most probable tokens, int64, in ascending order."""
    is_kept = is_target(blocks, len(mean_probabilities))
    is_kept[mean_probabilities.topk(min(likely, len(is_kept))).indices] = True
    return is_kept.nonzero()[:, 0]


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the number of tokens of the output head; 0 if the model has none."""
    head = model.get_output_embeddings()
    return 0 if head is None else features(base_of(head))[1]
