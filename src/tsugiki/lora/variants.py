"""Two variants of the layer: DoRA, and LoRA on a convolution.

**DoRA** (Liu et al. 2024, arXiv:2402.09353) trains the directions and the lengths of the weight's rows separately:

    y = g ∘ (W x + s B A x) + b        g = m / ‖W + s B A‖, row by row

with W [out, in], A [r, in], B [out, r], and m [out], which trains. m is initialised to ‖W‖, so before the first step g
is 1 and the layer is bit-identical to the frozen one. In the backward pass the norm is treated as a constant (section
4.3). With dropout, the low-rank path reads x̃ instead of x, and the effect of g is computed from x̃ as well:

    y = W x + b + (g - 1) ∘ W x̃ + g ∘ s B A x̃

Full fine-tuning mostly changes the directions of rows and hardly their lengths. LoRA couples the two; DoRA separates
them, which helps most at small ranks. The trade-off: it has `out` more parameters, computes the norms at every step,
and keeps W x̃ [tokens, out] for the gradient of m.

The norms are computed without a matrix of the weight's size: for a row w of W and its row b of B,
‖w + s A'b‖² = ‖w‖² + 2s b·(A w) + s² b·(A A')b.

**LoRA on a convolution**: the same two steps, of which the first is a convolution.

        x ──┬── W [out, in / groups, kh, kw] (frozen) ──────────────────┬──(+)── y
            └── dropout ── A [r, in, kh, kw] ── B [out, r / groups, 1, 1] ── · scaling ──┘

A has the kernel size, stride, padding and dilation of the layer, so its r output channels have the size of the layer's
output; B mixes these channels at each position. r (in · kh · kw + out) parameters train. Without groups, B A is a
kernel of the layer's shape and can be merged: ΔW[o, i] = scaling · Σ_r B[o, r] A[r, i]. In a layer with groups, A sees
all input channels and B has as many groups as the layer, as in PEFT. This is not a kernel of the layer's shape, so it
cannot be merged, and r must be a multiple of the number of groups. (PEFT's A ignores the layer's dilation, so PEFT
cannot adapt a layer with dilation.)
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lora.pair import Grafted, LowRank
from tsugiki.model.linear import oriented


@torch.no_grad()
def add_magnitude(pair: LowRank, weight: Tensor) -> None:
    """Turn a new pair into a DoRA pair, with m initialised to the lengths of the rows of W + ΔW.

    The frozen weight is [out, in], or a convolution's kernel, for which m has PEFT's shape [1, out, 1, 1].
    """
    delta = pair.delta()
    weight = weight.to(delta.dtype)
    pair.norms = nn.Parameter(row_norms(weight), requires_grad=False)
    length = row_norms(weight + delta)
    pair.magnitude = nn.Parameter(length if weight.dim() == 2 else length.view(1, -1, 1, 1))


def row_norms(weight: Tensor) -> Tensor:
    """Return the length of each row of a weight [out, …], as [out]."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


def rescale(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return W + ΔW [out, …] with its rows scaled to the trained lengths m, g ∘ (W + ΔW)."""
    factor = magnitude.flatten() / _positive(row_norms(weight))
    return weight * factor.view(-1, *[1] * (weight.dim() - 1))


def plain_factor(weight: Tensor, pair: LowRank) -> Tensor:
    """Return g [out] by its definition, from the frozen weight [out, …]."""
    assert pair.magnitude is not None
    with torch.no_grad(), _no_autocast(weight):
        delta = pair.delta()
        norms = _positive(row_norms(weight.to(delta.dtype) + delta))
    return pair.magnitude.flatten() / norms


def dora_factor(weight: Tensor, pair: LowRank) -> Tensor:
    """Return g [out] for a frozen weight [out, in], without computing a matrix of its size."""
    assert pair.magnitude is not None
    assert pair.norms is not None
    with torch.no_grad(), _no_autocast(weight):
        A, B = pair.factors()
        crossed = (weight @ A.to(weight.dtype).T).to(B.dtype)
        change = (B * (2 * pair.scaling * crossed + pair.scaling**2 * (B @ (A @ A.T)))).sum(1)
        norms = _positive(pair.norms.square().add_(change).clamp_(min=0).sqrt_())
    return pair.magnitude / norms


def dora_linear(layer: nn.Module, pair: LowRank, x: Tensor, y: Tensor) -> Tensor:
    """Return the output of a linear layer with DoRA for x [..., in]; y is the frozen layer's output for x."""
    A, B = pair.factors()
    dropped = pair.dropout(x)
    update = F.linear(F.linear(dropped.to(A.dtype), A), B) * pair.scaling
    return dora(layer, pair, y, y if dropped is x else layer(dropped), update)


def dora(layer: Any, pair: LowRank, y: Tensor, frozen: Tensor, update: Tensor) -> Tensor:
    """Return y + (g - 1) ∘ W x̃ + g ∘ update, the output of a linear layer or a convolution with DoRA.

    y is the frozen layer's output W x + b, `frozen` that after dropout, W x̃ + b, and the update s B A x̃.
    """
    weight = oriented(layer)
    by_channel = (-1, *[1] * (weight.dim() - 2))  # the channels of a convolution precede height and width
    factor = plain_factor(weight, pair).view(by_channel)
    if layer.bias is not None:
        frozen = frozen - layer.bias.view(by_channel)
    return (y + (factor - 1) * frozen + factor * update).to(y.dtype)


def _no_autocast(weight: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off, because a factor of exactly 1 may not stay 1 when it is computed in 16 bits."""
    kind = weight.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _positive(norms: Tensor) -> Tensor:
    """Replace lengths of zero by the smallest positive number, because the result is used as a divisor."""
    return norms.clamp(min=torch.finfo(norms.dtype).tiny)


class LoraConv2d(Grafted):
    """`nn.Conv2d` with a low-rank branch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return W * x + b + scaling · B * (A * dropout(x)) for x [rows, in, height, width]."""
        return self.with_dropped(x, x if self.lora is None else self.lora.dropout(x))

    def with_dropped(self, x: Tensor, dropped: Tensor) -> Tensor:
        """Compute `forward`, given the input after dropout; it is x itself without dropout."""
        layer, pair = self.base_layer, self.lora
        y: Tensor = layer(x)
        if pair is None:
            return y
        low = F.conv2d(dropped.to(pair.A.dtype), pair.A, None, layer.stride, layer.padding, layer.dilation)
        update = F.conv2d(low, pair.B, groups=layer.groups) * pair.scaling
        if pair.magnitude is None:
            return (y + update).to(y.dtype)
        return dora(layer, pair, y, y if dropped is x else layer(dropped), update)
