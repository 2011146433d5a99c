"""Sampled softmax: cross-entropy with an estimated normaliser, from the logits of a part of the vocabulary.

Some tokens are always used, among them every target (`kept`). Of the n other tokens, m are drawn at random:

    Z = Σ exp z[v] over kept tokens + n/m · Σ exp z[v] over drawn tokens        loss = Σ log Z - z[t]

Tokens are drawn uniformly and without replacement, so Z is an unbiased estimate of the sum over the vocabulary; log Z
is biased downwards a little. This is the importance sampling of Bengio and Senécal (2008), used in mini-batches by Jean
et al. (2015, arXiv:1412.2007). Without drawn tokens, the loss would not depend on the logits of the other tokens, and
training could raise them.

The rows of the output layer for these tokens make a smaller layer, and log n/m is added to the bias of the drawn
tokens. Its loss is computed by `fast.loss`. The rows of B for all other tokens have the gradient 0.
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
    """The tokens of a step, and the output layer for these tokens alone."""

    tokens: Tensor
    """int64 [size]: the kept tokens, then the drawn ones."""
    indices: Tensor
    """int64 [vocabulary]: the index of each token in `tokens`; 0 for tokens that are not in the sample."""
    log_weights: Tensor
    """[size]: the logarithm of each token's importance weight: 0 for kept tokens, log n/m for drawn ones."""
    layer: nn.Module
    """The frozen output layer with the outputs `tokens`; `log_weights` is added to its bias."""

    def targets(self, labels: Tensor) -> Tensor:
        """Return the index of each label in `tokens`, int64; `IGNORE_INDEX` stays."""
        return torch.where(labels == IGNORE_INDEX, labels, self.indices[labels.clamp(min=0)])


def can_sample(head: Head) -> bool:
    """Return whether `sampled_loss` supports this head: a frozen layer without a cap, whose rows can be selected."""
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
    indices = torch.zeros(features(frozen)[1], dtype=torch.int64, device=tokens.device)
    indices[tokens] = torch.arange(len(tokens), device=tokens.device)
    return VocabularySample(tokens, indices, log_weights, layer)


def plain_sampled_loss(hidden: Tensor, head: Head, labels: Tensor, sample: VocabularySample) -> Tensor:
    """Return the summed loss of all target tokens, in nats, by the definition.

    Hidden states are [..., width], and labels [...], with `IGNORE_INDEX` for rows without a target.
    """
    logits = head.logits(hidden).flatten(0, -2)[:, sample.tokens]
    logits = logits.to(at_least_float32(logits.dtype)) + sample.log_weights
    return F.cross_entropy(logits, sample.targets(labels.flatten()), ignore_index=IGNORE_INDEX, reduction="sum")


def sampled_loss(hidden: Tensor, head: Head, labels: Tensor, sample: VocabularySample) -> Tensor:
    """Compute `plain_sampled_loss`, differentiable in the hidden states and the adapter's factors of the head."""
    known: Any = known_layer(head, hidden.device)
    layer: Any = sample.layer
    targets = labels.flatten()
    selected = targets != IGNORE_INDEX if hidden.device.type == "cpu" else slice(None)
    rows, low, up = operands(hidden, head, known[1], selected, sample.tokens)
    loss: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        rows, None, layer.bias, low, up, sample.targets(targets[selected]), layer, None, None
    )
    return loss
