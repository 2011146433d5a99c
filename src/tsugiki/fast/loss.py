"""Cross-entropy from hidden states, a few rows at a time, so that the logits are never in memory as a whole.

For rows h [width] and their targets t, with logits z = h Wᵀ (+ b) and p = softmax(z):

    loss = -Σ log p[t]         dz = p - onehot(t)         dh = dz W        dW = dzᵀ h

The logits of a chunk are turned into p and then into dz in place, and dh of the chunk is computed in the same pass. So
a chunk of 256 rows with a vocabulary of 262,144 takes 128 MiB in bfloat16, where the logits of a whole step take
gigabytes. Where p[t] is near 1, 1 - p[t] is computed as the sum of the other probabilities, because p[t] itself would
be rounded to 1 in 16 bits. A grafted output head adds low = dropout(h) Aᵀ [rows, r] and s · B [vocabulary, r], so that
z = h Wᵀ + low (sB)ᵀ; autograd computes the gradients of A and B from those of low and s · B. Logits that the model
scales (Cohere, Granite) or caps (Gemma 2: cap · tanh(z / cap)) are scaled and capped here, too.

On an accelerator chunks are larger, and the host never waits for a value: rows without a target are computed, too, with
loss and gradient 0.

Losses of preferences need the sum of each answer (`chunked_answer_losses`); hidden states of prompts and padding do not
go through the head there.

`plain_loss` and `plain_answer_losses` are the definitions. Horace He's fused linear cross-entropy and Liger-Kernel do
the same on a GPU.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.document_masks import count_documents
from tsugiki.fast.head import Head, has_chunks
from tsugiki.fast.layers import computes_fast
from tsugiki.fast.masks import dropout
from tsugiki.lora.layer import LoraLinear
from tsugiki.lora.pair import LowRank
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.linear import (
    features,
    frozen_input_gradient,
    frozen_product,
    is_autocast_enabled,
    to_device,
)
from tsugiki.model.products import uses_onednn
from tsugiki.model.undo import base_of

_SCRATCH = 128 << 20  # bytes of logits in a chunk on a processor; each chunk reads and rearranges the whole weight
_EVALUATION_SCRATCH = 64 << 20  # the same in an evaluation; with half the memory, its head takes 6 % more time
_EXACT_SCRATCH = 4 << 20  # bytes of the logits that are converted to float32 at once on a processor
_DEVICE_SCRATCH = 512 << 20  # bytes of logits and probabilities in a chunk on an accelerator
_ROWS = (16, 512)  # rows of a chunk; with fewer the products are slow, more are not faster on a processor
_TILE = 4096  # words of the vocabulary in one product; for an odd vocabulary size (GPT-2), a single product is slow
_RECOMPUTE_ABOVE_NLL = 60.0  # nats; above this, the probability is too imprecise to take its logarithm


def plain_loss(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of all target tokens, in nats, by the definition.

    Hidden states are [..., width], and labels [...], with `IGNORE_INDEX` for rows without a target.
    """
    logits = head.logits(hidden).flatten(0, -2)
    exact = at_least_float32(logits.dtype)
    return F.cross_entropy(logits.to(exact), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of several answers in a batch, one answer after another."""

    places: Tensor
    """int64 [tokens]: the index of the hidden state that predicts each token, among those of all rows."""
    targets: Tensor
    """int64 [tokens]: the tokens."""
    lengths: list[int]
    """The number of tokens of each answer."""
    share_prompts: bool = False
    """Whether answers follow one copy of a prompt. Its last hidden state predicts the first token of each of them."""

    @classmethod
    def find(cls, labels: Tensor, positions: Tensor) -> "AnswerTokens":
        """Return the answers in packed rows: the labels of each document of a row are one answer.

        Labels are [rows, length], not shifted, with `IGNORE_INDEX` for the prompt; positions start at 0 in each
        document, [rows, length], or after the prompt that a document shares with the one before it
        (`fast.document_masks`). They are on the processor, so that no device has to wait.
        """
        order = torch.arange(positions.numel()).view_as(positions)
        prompts = torch.where(positions == 0, order, 0).cummax(-1).values  # where the last one begins
        begins = positions.diff(prepend=positions[:, :1] - 1) != 1
        predicts = torch.where(begins, prompts + positions, order) - 1
        is_target = labels != IGNORE_INDEX
        is_target[:, 0] = False
        documents = count_documents(positions) + positions.numel() * torch.arange(len(positions))[:, None]
        _numbers, lengths = torch.unique_consecutive(documents[is_target], return_counts=True)
        shared = bool((begins & (positions > 0)).any())
        return cls(predicts[is_target], labels[is_target], lengths.tolist(), shared)

    def to(self, device: torch.device) -> "AnswerTokens":
        """Return the same answers on a device."""
        places, targets = (to_device(part, device) for part in (self.places, self.targets))
        return replace(self, places=places, targets=targets)


def plain_answer_losses(hidden: Tensor, head: Head, answers: AnswerTokens) -> Tensor:
    """Return the cross-entropy of each answer, summed over its tokens, in nats, [answers], by the definition.

    Hidden states are [..., width]. The result is in float32 or wider.
    """
    answers = answers.to(hidden.device)
    logits = head.logits(hidden.flatten(0, -2)[answers.places])
    losses = F.cross_entropy(logits.to(at_least_float32(logits.dtype)), answers.targets, reduction="none")
    return _sums(losses, answers.lengths)


def chunked_answer_losses(hidden: Tensor, head: Head, answers: AnswerTokens) -> Tensor:
    """Compute `plain_answer_losses` without whole logits, differentiable in the hidden states and an adapter's factors.

    With and without gradients the result has the same bits. `plain_answer_losses` itself is used where chunks do not
    apply (see `chunked_loss`), and if the weight or the bias of the head trains.
    """
    known = known_layer(head, hidden.device)
    if known is None or any(parameter.requires_grad for parameter in known[0].parameters()):
        return plain_answer_losses(hidden, head, answers)
    layer, pair = known
    answers = answers.to(hidden.device)
    rows, low, up = operands(hidden, head, pair, answers.places)
    losses: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        rows, None, layer.bias, low, up, answers.targets, layer, head.softcap, answers.lengths
    )
    return losses


def _sums(losses: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the sum of each answer, in a fixed order also on a device, where `index_add_` has none."""
    return torch.stack([part.sum() for part in torch.split(losses, list(lengths))])


def chunked_loss(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Compute `plain_loss` without whole logits, differentiable in the hidden states and the head's trained parameters.

    `plain_loss` itself is used where chunks do not apply: under autocast or a compiler, and for other kinds of heads.
    """
    known = known_layer(head, hidden.device)
    if known is None:
        return plain_loss(hidden, head, labels)
    layer, pair = known
    targets = labels.flatten()
    selected = targets != IGNORE_INDEX if hidden.device.type == "cpu" else slice(None)
    rows, low, up = operands(hidden, head, pair, selected)
    weight = (
        layer.weight if torch.is_grad_enabled() and type(layer) is nn.Linear and layer.weight.requires_grad else None
    )
    loss: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        rows, weight, layer.bias, low, up, targets[selected], layer, head.softcap, None
    )
    return loss


def operands(
    hidden: Tensor, head: Head, pair: LowRank | None, selected: Tensor | slice, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the selected rows of the hidden states, scaled, and `_low_and_up` of these rows after dropout.

    The mask is drawn for all rows, so that it does not depend on which are selected. `tokens` are those of the
    vocabulary that have logits, int64 [n]; None: all.
    """
    rows = hidden.flatten(0, -2)
    if head.scale != 1.0:
        rows = rows * head.scale
    dropped = rows if pair is None else dropout(rows, pair.dropout.p if pair.training else 0.0)
    return rows[selected], *_low_and_up(pair, dropped[selected], tokens)


@torch.no_grad()
def token_losses(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each row in nats, without whole logits, without dropout, and without gradients.

    Hidden states are [..., width], and labels [...], with `IGNORE_INDEX` for rows without a target, whose loss is 0.
    The result [...] is in float32 or wider.
    """
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    on_cpu = rows.device.type == "cpu"
    losses = torch.zeros(len(rows), dtype=at_least_float32(rows.dtype), device=rows.device)
    selected = targets != IGNORE_INDEX if on_cpu else slice(None)  # on a device, the host would wait for the count
    rows, targets = rows[selected], targets[selected]
    layer, exact = base_of(head.layer), losses.element_size()
    bytes_per_logit = rows.element_size() + (0 if on_cpu else 2 * exact)
    size = rows_per_chunk(features(layer)[1], bytes_per_logit, on_cpu, _EVALUATION_SCRATCH)
    at_once = max(1, _EXACT_SCRATCH // (features(layer)[1] * exact)) if on_cpu else size
    parts = [
        F.cross_entropy(logits.to(losses.dtype), target, ignore_index=IGNORE_INDEX, reduction="none")
        for chunk, of_chunk in zip(torch.split(rows, size), torch.split(targets, size), strict=True)
        for logits, target in zip(
            torch.split(_logits_without_dropout(head, chunk), at_once), torch.split(of_chunk, at_once), strict=True
        )
    ]
    losses[selected] = torch.cat(parts)
    return losses.view(labels.shape)


def _logits_without_dropout(head: Head, rows: Tensor) -> Tensor:
    """Return the logits of some rows, without dropout."""
    known = known_layer(head, rows.device)
    if known is None:
        return head.logits(rows)
    layer, pair = known
    if head.scale != 1.0:
        rows = rows * head.scale
    return _logits(layer, rows, *_low_and_up(pair, rows), 0, head.softcap)


def _low_and_up(
    pair: LowRank | None, rows: Tensor, tokens: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return x Aᵀ [rows, r] and s · B [tokens, r] in the dtype of the rows x; None and None without a pair."""
    if pair is None:
        return None, None
    A, B = pair.factors()
    if tokens is not None:
        B = B.index_select(0, tokens)
    return F.linear(rows, A.to(rows.dtype)), (pair.scaling * B).to(rows.dtype)


def known_layer(head: Head, device: torch.device) -> tuple[Any, LowRank | None] | None:
    """Return the output layer without its adapter, and the adapter's pair; None where chunks do not apply."""
    layer: Any = head.layer
    pair: LowRank | None = None
    if isinstance(layer, LoraLinear) and computes_fast(layer):
        layer, pair = layer.base_layer, layer.lora
    scaled_bias = head.scale != 1 and layer.bias is not None  # no known model has both
    if (
        not has_chunks(layer)
        or scaled_bias
        # DoRA and a bias change more than a low-rank update can.
        or (pair is not None and (pair.magnitude is not None or pair.bias is not None))
        or is_autocast_enabled(device)
        or torch.compiler.is_compiling()
    ):
        return None
    return layer, pair


class ChunkedLoss(torch.autograd.Function):
    """The loss of rows of hidden states, a chunk at a time; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        targets: Tensor,
        layer: nn.Module,
        softcap: float | None,
        lengths: list[int] | None,
    ) -> Tensor:
        """Return the loss of all rows; with `lengths`, that of each answer, and the weight and bias are frozen.

        Then the gradients of rows are multiplied by the number that comes back for their answer. That of s · B is a sum
        over rows, so there is one for each answer.
        """
        exact = at_least_float32(hidden.dtype)
        loss = torch.zeros(() if lengths is None else len(hidden), dtype=exact, device=hidden.device)
        needs = ctx.needs_input_grad[:5]
        sources = (hidden, weight, bias, low, up)
        grads = [
            None if not needed or source is None else torch.zeros_like(source, dtype=exact if at in (1, 2, 4) else None)
            for at, (source, needed) in enumerate(zip(sources, needs, strict=True))
        ]
        if lengths is not None and grads[4] is not None:
            grads[4] = grads[4].new_zeros(len(lengths), *grads[4].shape)
        d_hidden, d_weight, d_bias, d_low, d_up = grads
        recompute_above = min(_RECOMPUTE_ABOVE_NLL, -math.log(torch.finfo(hidden.dtype).tiny))
        on_cpu = hidden.device.type == "cpu"
        tensors = (1 if softcap is None else 2) + (not on_cpu)
        size = rows_per_chunk(features(layer)[1], hidden.element_size() * tensors, on_cpu)
        for at in range(0, len(hidden), size):
            rows, target = hidden[at : at + size], targets[at : at + size]
            logits = _logits(layer, rows, low, up, at, softcap)
            slope = None if softcap is None else logits / softcap
            # Indexing is faster than `scatter_`, which copies the whole tensor.
            place = torch.arange(len(target), device=target.device), target if on_cpu else target.clamp(min=0)
            if on_cpu:
                # The kernel reads each element before it writes it, so the output may be the input.
                torch.ops.aten._softmax.out(logits, -1, False, out=logits)
            else:
                logits, improbable = _softmax_and_nll(logits, place)
            chosen = logits[place].to(exact)
            logits[place] = 0
            others = logits.sum(1).to(exact)  # with `dtype=exact`, `sum` would copy the logits
            likely = chosen > 0.5
            nll = torch.where(likely, -torch.log1p(-others), -chosen.log())
            if on_cpu:
                for row in (nll > recompute_above).nonzero()[:, 0]:
                    again = _logits(layer, rows[row : row + 1], low, up, at + int(row), softcap).to(exact)
                    nll[row] = again.logsumexp(1)[0] - again[0, target[row]]
            else:
                nll = torch.where(nll > recompute_above, improbable, nll).masked_fill_(target == IGNORE_INDEX, 0)
            if lengths is None:
                loss += nll.sum()
            else:
                loss[at : at + size] = nll
            if not any(needs):
                del logits, slope
                continue
            logits[place] = torch.where(likely, -others, chosen - 1).to(logits.dtype)
            if slope is not None:
                logits.mul_(slope.square_().neg_().add_(1))
            if not on_cpu:
                logits.masked_fill_((target == IGNORE_INDEX)[:, None], 0)
            if d_hidden is not None:
                d_hidden[at : at + size] = frozen_input_gradient(layer, logits)
            if d_weight is not None:
                d_weight += logits.T @ rows
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=exact)
            if d_low is not None and up is not None:
                torch.mm(logits, up, out=d_low[at : at + size])
            if d_up is not None and low is not None and lengths is None:
                d_up += (low[at : at + size].T @ logits).T
            elif d_up is not None and low is not None and lengths is not None:
                for answer, first, last in _within(lengths, at, at + len(rows)):
                    d_up[answer] += (low[first:last].T @ logits[first - at : last - at]).T
            del logits, slope  # so that two chunks are never in memory at once
        ctx.grads = grads
        ctx.dtypes = [None if source is None else source.dtype for source in sources]
        ctx.lengths = lengths
        return loss if lengths is None else _sums(loss, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradients, which the forward pass has computed, by that of the loss."""
        grads, factor = ctx.grads, d_loss
        if ctx.lengths is not None:
            d_hidden, _weight, _bias, d_low, d_up = grads
            factor = torch.cat([one.expand(length, 1) for one, length in zip(d_loss, ctx.lengths, strict=True)])
            grads = [d_hidden, None, None, d_low, None]
        scaled = [
            None if grad is None else (grad * factor.to(grad.dtype)).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        if ctx.lengths is not None and d_up is not None:
            scaled[4] = torch.tensordot(d_loss.to(d_up.dtype), d_up, 1).to(ctx.dtypes[4])
        return (*scaled, None, None, None, None)


def _within(lengths: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each answer that has rows from `begin` to `end` - 1, and the first and last + 1 of these."""
    ends = [*accumulate(lengths)]
    for answer in range(bisect_right(ends, begin), bisect_left(ends, end) + 1):
        yield answer, max(begin, ends[answer] - lengths[answer]), min(end, ends[answer])


def _logits(
    layer: nn.Module, rows: Tensor, low: Tensor | None, up: Tensor | None, at: int, softcap: float | None
) -> Tensor:
    """Return the logits of some rows [rows, width], as a new tensor, with the cap of `Head`.

    `low` is dropout(h) Aᵀ of all rows, [all rows, r], of which the first of these is number `at`, and `up` is s · B,
    [vocabulary, r]; both are None without a pair.
    """
    if type(layer) is nn.Linear and rows.device.type == "cpu" and not uses_onednn(rows, layer.weight):
        logits = _tiled(layer, rows)
    else:
        logits = frozen_product(layer, rows)
    if low is not None and up is not None:
        logits.addmm_(low[at : at + len(rows)], up.T)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _softmax_and_nll(logits: Tensor, place: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the probabilities in a new tensor, and the loss of each target in float32 or wider.

    The loss does not use the logarithm of a probability near 0: with the largest logit z and its probability p, it is z
    - log p - z[target]. `place` has the indices of the targets' logits.
    """
    exact = at_least_float32(logits.dtype)
    probabilities = torch.softmax(logits, -1)
    largest = logits.amax(1).to(exact) - probabilities.amax(1).to(exact).log()
    return probabilities, largest - logits[place].to(exact)


def _tiled(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Return the layer's product, computed for `_TILE` words of the vocabulary at a time."""
    logits = rows.new_empty(len(rows), len(layer.weight))
    for weight, tile in zip(torch.split(layer.weight, _TILE), torch.split(logits, _TILE, 1), strict=True):
        torch.mm(rows, weight.T, out=tile)
    return logits if layer.bias is None else logits.add_(layer.bias)


def rows_per_chunk(outputs: int, bytes_per_logit: int, on_cpu: bool = True, scratch: int = _SCRATCH) -> int:
    """Return the number of rows in a chunk, a multiple of 16.

    A row has `outputs` logits. On a processor, the logits of a chunk take about `scratch` bytes.
    """
    fit = (scratch if on_cpu else _DEVICE_SCRATCH) // (outputs * bytes_per_logit) // 16 * 16
    return max(_ROWS[0], min(_ROWS[1], fit) if on_cpu else fit)
