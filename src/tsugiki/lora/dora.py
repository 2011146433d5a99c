"""DoRA: the update turns the weight's rows, and their lengths are trained apart (Liu et al. 2024, arXiv:2402.09353).

    y = g ∘ (W x + s B A x) + b        g = m / ‖W + s B A‖, row by row

with W [out, in], A [r, in], B [out, r], and m [out], trained, which begins as ‖W‖: so g is 1, and the layer the frozen
one to the last bit, until the first step. The norm is a constant to the gradients (section 4.3). With dropout on its
way, x̃ of x, what the factor changes is of x̃ too:

    y = W x + b + (g - 1) ∘ W x̃ + g ∘ s B A x̃

Full fine-tuning mostly turns rows and changes lengths little; LoRA couples the two, and this sets them free, mostly to
the good of small ranks. The trade-off: out more numbers to train, the norms at every step, and W x̃ [tokens, out] kept
for the gradient of m.

The norms need no weight of full size: ‖w + s A'b‖² = ‖w‖² + 2s b·(A w) + s² b·(A A')b for a row w and its row b of B.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lora.masks import dropout
from tsugiki.lora.product import grafted_product

if TYPE_CHECKING:
    from tsugiki.lora.layer import LowRank


@torch.no_grad()
def add_magnitude(pair: "LowRank", weight: Tensor) -> None:
    """Make it a DoRA pair: m as long as the rows are that it begins with.

    Args:
        pair: A and B as they begin.
        weight: the frozen one, [out, in], or a convolution's; PEFT then has m as [1, out, 1, 1].
    """
    delta = pair.delta()
    weight = weight.to(delta.dtype)
    pair.norms = row_norms(weight)
    length = row_norms(weight + delta)
    pair.magnitude = nn.Parameter(length if weight.dim() == 2 else length.view(1, -1, 1, 1))


def row_norms(weight: Tensor) -> Tensor:
    """Length of each row of a weight [out, …]."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


def rescale(whole: Tensor, magnitude: Tensor) -> Tensor:
    """g ∘ (W + ΔW): a weight [out, …] with rows of these lengths."""
    factor = magnitude.flatten() / _above_zero(row_norms(whole))
    return whole * factor.view(-1, *[1] * (whole.dim() - 1))


def plain_factor(weight: Tensor, pair: "LowRank") -> Tensor:
    """g [out], by the definition."""
    assert pair.magnitude is not None
    with torch.no_grad(), _exactly(weight):
        delta = pair.delta()
        norms = _above_zero(row_norms(weight.to(delta.dtype) + delta))
    return pair.magnitude.flatten() / norms


def dora_factor(weight: Tensor, pair: "LowRank") -> Tensor:
    """g [out] for a weight [out, in], without a weight of full size."""
    assert pair.magnitude is not None
    assert pair.norms is not None
    with torch.no_grad(), _exactly(weight):
        A, B = pair.factors()
        crossed = (weight @ A.to(weight.dtype).T).to(B.dtype)
        change = (B * (2 * pair.scaling * crossed + pair.scaling**2 * (B @ (A @ A.T)))).sum(1)
        norms = _above_zero(pair.norms.square().add_(change).clamp_(min=0).sqrt_())
    return pair.magnitude / norms


def plain_dora(layer: nn.Module, weight: Tensor, pair: "LowRank", x: Tensor, y: Tensor) -> Tensor:
    """The definition, for a linear layer.

    Args:
        layer: the frozen layer.
        weight: its weight as [out, in].
        pair: the layer's.
        x: [..., in].
        y: what the layer makes of x.
    """
    A, B = pair.factors()
    factor = plain_factor(weight, pair)
    p = pair.dropout.p if pair.training else 0.0
    seen = dropout(x, p)
    turned: Tensor = layer(seen) if p else y
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is not None:
        turned = turned - bias
    low = F.linear(F.linear(seen.to(A.dtype), A), B) * pair.scaling
    return (y + (factor - 1) * turned + factor * low).to(y.dtype)


def dora_product(layer: nn.Module, weight: Tensor, pair: "LowRank", x: Tensor) -> Tensor:
    """The same by `grafted_product`, which must know the layer; under dropout with a second product, as defined."""
    A, B = pair.factors()
    p = pair.dropout.p if pair.training else 0.0
    seen = dropout(x, p)
    z = grafted_product(layer, seen, A, B, pair.scaling, 0.0)
    # g is near 1, where 16 bits are coarse; g - 1 they can hold.
    more = (dora_factor(weight, pair) - 1).to(z.dtype)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    turned = z if bias is None else z - bias
    if not p:
        return torch.addcmul(z, turned, more)
    low = F.linear(F.linear(seen, A.to(z.dtype)), (B * pair.scaling).to(z.dtype))
    return torch.addcmul(layer(x) + low, turned, more)


def _exactly(weight: Tensor) -> torch.autocast:
    """Without autocast, whose 16 bits would make a factor of 1 another number."""
    return torch.autocast(weight.device.type, enabled=False)


def _above_zero(norms: Tensor) -> Tensor:
    """A row of zeros has a length to divide by, too."""
    return norms.clamp(min=torch.finfo(norms.dtype).tiny)
