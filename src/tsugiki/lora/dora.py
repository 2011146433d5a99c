"""DoRA: the directions and the lengths of the weight's rows are trained separately (Liu et al. 2024, arXiv:2402.09353).

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
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lora.masks import dropout
from tsugiki.lora.pair import LowRank
from tsugiki.lora.product import grafted_product


@torch.no_grad()
def add_magnitude(pair: LowRank, weight: Tensor) -> None:
    """Turn `pair` into a DoRA pair, with m initialised to the lengths of the rows of W + ΔW.

    Args:
        pair: A and B with their initial values.
        weight: the frozen weight, [out, in], or a convolution's kernel, for which m has PEFT's shape [1, out, 1, 1].
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
    """Return W + ΔW with its rows scaled to the trained lengths, g ∘ (W + ΔW).

    Args:
        weight: W + ΔW, [out, …].
        magnitude: the lengths m.
    """
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


def plain_dora(layer: nn.Module, weight: Tensor, pair: LowRank, x: Tensor, y: Tensor) -> Tensor:
    """Compute a linear layer with DoRA by its definition.

    Args:
        layer: the frozen layer.
        weight: its weight as [out, in].
        pair: its DoRA pair.
        x: the input, [..., in].
        y: the frozen layer's output for x, [..., out].
    """
    A, B = pair.factors()
    factor = plain_factor(weight, pair)
    p = pair.dropout.p if pair.training else 0.0
    dropped = dropout(x, p)
    frozen: Tensor = layer(dropped) if p else y
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is not None:
        frozen = frozen - bias
    update = F.linear(F.linear(dropped.to(A.dtype), A), B) * pair.scaling
    return (y + (factor - 1) * frozen + factor * update).to(y.dtype)


def dora_product(layer: nn.Module, weight: Tensor, pair: LowRank, x: Tensor) -> Tensor:
    """Compute `plain_dora` with `grafted_product`, which must apply to the layer.

    With dropout, W x and W x̃ are two products, as in the definition.
    """
    A, B = pair.factors()
    p = pair.dropout.p if pair.training else 0.0
    dropped = dropout(x, p)
    z = grafted_product(layer, dropped, A, B, pair.scaling, 0.0)
    # 16 bits represent g, which is near 1, only coarsely, but g - 1 well.
    excess = (dora_factor(weight, pair) - 1).to(z.dtype)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    without_bias = z if bias is None else z - bias
    if not p:
        return torch.addcmul(z, without_bias, excess)
    update = F.linear(F.linear(dropped, A.to(z.dtype)), (B * pair.scaling).to(z.dtype))
    return torch.addcmul(layer(x) + update, without_bias, excess)


def _no_autocast(weight: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off, because a factor of exactly 1 may not stay 1 when it is computed in 16 bits."""
    kind = weight.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _positive(norms: Tensor) -> Tensor:
    """Replace lengths of zero by the smallest positive number, because the result is used as a divisor."""
    return norms.clamp(min=torch.finfo(norms.dtype).tiny)
