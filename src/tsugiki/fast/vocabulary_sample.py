"""Cross-entropy in which a sample stands for most of the vocabulary, so that the output layer computes few logits.

Of the tokens in a vocabulary, some are kept, with every target among them, and m of the n others are drawn:

    Z = Σ exp z[v] over kept tokens + n/m · Σ exp z[v] over drawn tokens        loss = Σ log Z - z[t]

The drawn tokens are uniform, without replacement, so the mean of Z over many draws is the sum over the vocabulary (and
that of log Z is a little lower than its logarithm). This is the sampled softmax of Bengio and Senécal (2008) and of
Jean et al. (2015, arXiv:1412.2007). Without the drawn tokens, nothing would hold down the logits of all the tokens that
are not in the text.

The rows of the output layer for these tokens make a small layer, with log n/m in the bias of drawn tokens, whose loss
is that of `fast.loss`. The gradient of s · B has these rows only; those of other tokens are 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.head import Head
from tsugiki.fast.loss import ChunkedLoss, known_layer, operands
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.linear import device_of, features, has_product, select_outputs
from tsugiki.model.undo import base_of


@dataclass(frozen=True)
class VocabularySample:
    """Tokens that stand for the vocabulary, and the output layer for them."""

    tokens: Tensor
    """int64 [n]: the kept tokens, then the drawn ones."""
    places: Tensor
    """int64 [vocabulary]: the index of each token in `tokens`; 0 for those that are not in it."""
    log_weights: Tensor
    """[n]: how many tokens each one stands for, as a logarithm."""
    layer: nn.Module
    """The frozen output layer with the outputs `tokens`, and `log_weights` in its bias."""


def can_sample(head: Head) -> bool:
    """Return whether `sampled_loss` can compute the loss of this head: a frozen layer whose rows can be selected."""
    device = device_of(base_of(head.layer))
    known = known_layer(head, device)
    if known is None or head.softcap is not None or not has_product(known[0]):
        return False
    return select_outputs(known[0], torch.zeros(1, dtype=torch.int64, device=device)) is not None


def draw_sample(head: Head, kept: Tensor, others: Tensor, count: int, generator: torch.Generator) -> VocabularySample:
    """Draw `count` of the other tokens; `kept` and `others` are int64, and together the vocabulary.

    `can_sample` must hold for the head.
    """
    drawn = others[torch.randperm(len(others), generator=generator)[:count].to(others.device)]
    tokens = torch.cat([kept, drawn])
    frozen = base_of(head.layer)
    layer = select_outputs(frozen, tokens)
    assert layer is not None
    log_weights = torch.zeros(len(tokens), device=tokens.device)
    log_weights[len(kept) :] = math.log(len(others) / max(1, len(drawn)))
    bias = log_weights if layer.bias is None else layer.bias + log_weights  # type: ignore[operator]
    dtype = layer.weight.dtype if type(layer) is nn.Linear else torch.float32
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    places = torch.zeros(features(frozen)[1], dtype=torch.int64, device=tokens.device)
    places[tokens] = torch.arange(len(tokens), device=tokens.device)
    return VocabularySample(tokens, places, log_weights, layer)


def plain_sampled_loss(hidden: Tensor, head: Head, labels: Tensor, sample: VocabularySample) -> Tensor:
    """Return the summed loss of all target tokens, in nats, by the definition.

    Hidden states are [..., width], and labels [...], with `IGNORE_INDEX` for rows without a target.
    """
    logits = head.logits(hidden).flatten(0, -2)[:, sample.tokens]
    logits = logits.to(at_least_float32(logits.dtype)) + sample.log_weights
    targets = labels.flatten()
    targets = torch.where(targets == IGNORE_INDEX, targets, sample.places[targets.clamp(min=0)])
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


def sampled_loss(hidden: Tensor, head: Head, labels: Tensor, sample: VocabularySample) -> Tensor:
    """Compute `plain_sampled_loss`, differentiable in the hidden states and the adapter's factors of the head."""
    known: Any = known_layer(head, hidden.device)
    layer: Any = sample.layer
    targets = labels.flatten()
    selected = targets != IGNORE_INDEX if hidden.device.type == "cpu" else slice(None)
    rows, low, up = operands(hidden, head, known[1], selected, sample.tokens)
    targets = targets[selected]
    targets = torch.where(targets == IGNORE_INDEX, targets, sample.places[targets.clamp(min=0)])
    loss: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        rows, None, layer.bias, low, up, targets, layer, None, None
    )
    return loss
