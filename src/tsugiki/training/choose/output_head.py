"""Whether the output head gets LoRA factors as well, by what the base predicts on the text, and whether it is sampled.

    share of unlikely tokens    below 0.5 %    its B has a tenth of the learning rate, if the vocabulary has at most
                                               16,384 tokens; otherwise the head is left out
                                below 2 %      its B has a tenth of the learning rate
                                from 2 % on    it trains like the other layers, if the vocabulary has at most 32,768
                                               tokens; otherwise as below 2 %

The default layers are the linear layers inside the blocks. They change what goes into the head, but not the head's
rows, so they can hardly raise the probability of a token that the base has never written, such as an old form of a
Chinese character. A base gives such a token a probability of less than 1 in 400,000 almost everywhere, and any other
token seldom: the embedded model to up to 1.6 % of the tokens of works in old kana, and to 3 % of those of the
quickstart's texts, which are in katakana. With few unlikely tokens, or with the large head of Gemma 3 270M, the head at
the full rate forgets more than it learns; at a tenth of it, and with the strength that `training.choose.decisions`
chooses, nearly all texts that were tried with the embedded model gain, also those with few such tokens
(docs/training-evidence.md). Only settings that leave the layers open (`leaves_layers_open`) are changed.

    softmax    sampled if LoRA learns texts on a processor, and a step computes the logits of at most a third of the
               vocabulary; otherwise full (see `fast.vocabulary_sample`)

With sampled softmax, a step computes the logits of the targets in the training data, of the 8,192 tokens to which the
base gives the highest mean probability on a sample of the data, and of 8,192 other tokens, which are drawn for each
step. The output layer of Gemma 3 270M (262,144 tokens) takes two thirds of the multiplications of a step; with sampled
softmax, a step takes 0.56 of the time, and the validation loss ends about 0.2 % higher. Without the likely tokens it
ends 1 % higher, because the estimate has a higher variance (docs/training-evidence.md). Evaluations always use the
whole vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Blocks
from tsugiki.data.windows import evenly_spread
from tsugiki.errors import TsugikiError
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.vocabulary_sample import can_sample
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.pair import LowRank
from tsugiki.lora.targets import find_targets, shortest_target_modules
from tsugiki.model.context import IGNORE_INDEX, text_config
from tsugiki.model.inference import evaluating
from tsugiki.model.linear import features, is_graftable
from tsugiki.model.undo import base_of
from tsugiki.model.ungrafted import base_modules, output_head
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools.processes import run_in_threads

_SHARE, _LARGE_UNLIKELY_SHARE = 0.005, 0.02
_SMALL_VOCABULARY, _LARGEST_VOCABULARY = 16_384, 32_768
_SLOW = 0.1


def leaves_layers_open(config: Any) -> bool:
    """Return whether the settings of a method leave the choice of the layers to the model type's defaults."""
    return (
        isinstance(config, LoraConfig)
        and config.target_modules is None
        and not (config.target_parameters or config.modules_to_save or config.exclude_modules)
        and config.trainable_token_indices is None
        and config.layers_to_transform is None
    )


def with_output_head(model: nn.Module, config: LoraConfig) -> LoraConfig | None:
    """Return settings that select the default layers of the model and its output head.

    Returns None if the model has no head that can be grafted, or if no names in an adapter's file select it without
    selecting other layers.
    """
    head = output_head(model)
    names = [name for name, module in base_modules(model) if module is head]
    if head is None or not names or not is_graftable(head):
        return None
    both = [*find_targets(model, config), names[0]]
    try:
        return dataclasses.replace(config, target_modules=shortest_target_modules(model, config, both))
    except TsugikiError:  # as in GIT, whose head is called `output`, like parts of its blocks
        return None


def head_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return B of the output head's LoRA factors; empty if it has none."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    pair = getattr(head, "lora", None)
    return [pair.B] if isinstance(pair, LowRank) else []


def head_factor(share: float, vocabulary: int) -> float | None:
    """Return the learning rate of the head's B relative to that of the run; None: the head is left out.

    `share` is that of unlikely tokens.
    """
    if share < _SHARE and vocabulary > _SMALL_VOCABULARY:
        return None
    return 1.0 if share >= _LARGE_UNLIKELY_SHARE and vocabulary <= _LARGEST_VOCABULARY else _SLOW


def head_notes(share: float, model: nn.Module) -> list[str]:
    """Return the sentences that say that the head trains as well, how to undo it, and what llama.cpp then needs."""
    message = _("the output head gets LoRA factors as well ({flag:target_modules all-linear} leaves it out)")
    if share >= _SHARE:
        message = _(
            "the base gives {share:.1%} of the tokens almost no probability, as if it had never written them, so the "
            "output head gets LoRA factors as well ({flag:target_modules all-linear} leaves it out)"
        )
    notes = [message.format(share=share)]
    if getattr(text_config(model), "tie_word_embeddings", False):
        notes.append(
            _(
                "the head shares its weight with the token embedding, so llama.cpp can load the adapter merged into "
                "its base only ({flag:merged} of tsugiki export)"
            )
        )
    return notes


_UNLIKELY_BELOW = math.exp(-13.0)
"""The probability below which a token is unlikely, 2.3e-6."""
_ROWS, _TOKENS = 8, 128
"""Rows of the sample, and tokens of each."""


@dataclass(frozen=True)
class BasePredictions:
    """The base's predictions of the tokens in the loss, in a sample of the training data."""

    unlikely_share: float
    """The share of the tokens to which the base gives almost no probability."""
    mean_probabilities: Tensor
    """float32 [vocabulary]: the probability of each token, in the mean over all places."""


def predict_sample(model: nn.Module, blocks: Blocks) -> BasePredictions:
    """Compute the predictions for the beginnings of some rows, spread evenly over the training data.

    On a processor, the rows are computed in parallel, with one thread each.
    """
    tasks = [partial(_predict, model, blocks[number]) for number in evenly_spread(range(len(blocks)), _ROWS)]
    on_processor = next(model.parameters()).device.type == "cpu"
    with evaluating(model):
        found = list(run_in_threads(tasks, threads_of_each=1) if on_processor else (task() for task in tasks))
    unlikely, counted = sum(one[0] for one in found), max(1, sum(one[1] for one in found))
    return BasePredictions(unlikely / counted, torch.stack([one[2] for one in found]).sum(0) / counted)


@torch.no_grad()  # which holds for one thread, so `evaluating` does not suffice
def _predict(model: nn.Module, row: Mapping[str, Tensor]) -> tuple[int, int, Tensor]:
    """Return how many of the first tokens in the loss of a row are unlikely, how many there are, and all probabilities.

    The probabilities of each token of the vocabulary are summed over the places.
    """
    first = int((row["labels"] != IGNORE_INDEX).int().argmax())  # an answer may be at the end of a row
    start = max(0, first - _TOKENS // 2)
    device = next(model.parameters()).device
    ids, labels = (row[name][start : start + _TOKENS].to(device) for name in ("input_ids", "labels"))
    in_loss = labels[1:] != IGNORE_INDEX
    logits, targets = model(input_ids=ids[None]).logits[0, :-1][in_loss], labels[1:][in_loss]
    probabilities = logits.softmax(-1, dtype=torch.float32)  # of a large vocabulary, 100 MB
    of_targets = probabilities.gather(1, targets[:, None])
    return int((of_targets < _UNLIKELY_BELOW).sum()), len(targets), probabilities.sum(0).cpu()


SAMPLED = "sampled"
_LIKELY_TOKENS, _DRAWN_TOKENS = 8192, 8192  # tokens
"""The tokens with the highest probability that each step computes, and those that are drawn for it."""
_MOST_COMPUTED = 1 / 3  # of the vocabulary; a step of SmolLM2 (49,152 tokens) takes as long with a quarter of it


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
    most = _MOST_COMPUTED * vocabulary_of(model)
    if not can_choose or most < _LIKELY_TOKENS + _DRAWN_TOKENS:
        return False  # without looking at all tokens of the data
    return int(is_target(blocks, vocabulary_of(model)).sum()) + _LIKELY_TOKENS + _DRAWN_TOKENS <= most


def sampled_tokens(
    config: RunConfig,
    adapter_config: Any,
    model: PreTrainedModel,
    blocks: Blocks,
    probabilities: Tensor,
    in_shards: bool,
) -> tuple[Tensor, int] | None:
    """Return the ids of the tokens whose logits every step computes, int64, and how many others each step draws.

    The model was made trainable. The result is None if it does not support sampled softmax.

    `probabilities` are the mean ones of the base on a sample of the data; `in_shards`: the weights will be split over
    processes. If the settings ask for sampled softmax, the model must support it.
    """
    is_lora = isinstance(adapter_config, LoraConfig)
    if is_lora and not in_shards and has_chunked_loss(model) and can_sample(head_of(model)):
        return kept_tokens(blocks, probabilities, _LIKELY_TOKENS), _DRAWN_TOKENS
    if config.softmax is None:
        return None
    raise TsugikiError(
        "softmax sampled needs LoRA and an output layer that is frozen, not in shards, and of floats or in int8; "
        "leave softmax out"
    )


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
