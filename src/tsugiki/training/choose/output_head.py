"""Whether the output head gets LoRA factors as well, by what the base predicts on the text (`base_predictions`).

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
"""

import dataclasses
from typing import Any

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.pair import LowRank
from tsugiki.lora.targets import find_targets, shortest_target_modules
from tsugiki.model.context import text_config
from tsugiki.model.linear import is_graftable
from tsugiki.model.ungrafted import base_modules, output_head

_SHARE, _LARGE_SHARE = 0.005, 0.02
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
    return 1.0 if share >= _LARGE_SHARE and vocabulary <= _LARGEST_VOCABULARY else _SLOW


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
