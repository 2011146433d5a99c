"""The grafted linear layer as one autograd function: what `LoraLinear` defines, quicker and in less memory.

With m the dropout mask (all ones without dropout), s = scaling / (1 - p), and the frozen layer's product and input
gradient taken as they are:

    x̃ = m ∘ x              dlow = s · dy B
    low = x̃ Aᵀ             dA = dlowᵀ x̃        dB = s · dyᵀ low
    y = W x + b + s · low Bᵀ       dx = Wᵀ dy + m ∘ (dlow A)

The low-rank parts are added in place; kept for the backward pass are x (which layers that read the same one share),
m (a byte for each element) and low [rows, r], and nothing of the output's size. dx is left out where nothing below asks
for it; where A is frozen (LoRA-FA), dA is, and x is not kept. A and B are cast to the activations' dtype for the
products (they are small), and their gradients come back in their own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.lora.masks import apply_mask, keep_mask


def has_product(layer: nn.Module) -> bool:
    """Whether the layer's product is known here, and nothing else happens when the layer is called.

    Layers of other precisions offer `product(x)` and `input_gradient(dy)` on [rows, features] themselves. Subclasses
    and hooks may do anything; such a layer is called as it is.
    """
    if is_hooked(layer):
        return False
    if hasattr(layer, "input_gradient"):
        return True
    weight = layer._parameters.get("weight")
    return type(layer).__name__ in ("Linear", "Conv1D") and type(weight) is nn.Parameter and not weight.requires_grad


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling this module does more than its class says."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or "forward" in vars(layer)


def frozen_product(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b for x [rows, in]; a new tensor [rows, out]."""
    if hasattr(layer, "input_gradient"):
        return layer.product(x)  # type: ignore[operator, no-any-return]
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight, layer.bias)
    return torch.addmm(layer.bias, x, layer.weight)  # type: ignore[arg-type]


def frozen_input_gradient(layer: nn.Module, dy: Tensor) -> Tensor:
    """Wᵀ dy for dy [rows, out]; a new tensor [rows, in]."""
    if hasattr(layer, "input_gradient"):
        return layer.input_gradient(dy)  # type: ignore[operator, no-any-return]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return dy @ (weight if isinstance(layer, nn.Linear) else weight.T)


def grafted_product(layer: nn.Module, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float) -> Tensor:
    """W x + b + scaling · B A dropout(x), differentiable in x, A, B and, where it trains, the layer's bias.

    Args:
        layer: the frozen layer; `has_product` holds of it.
        x: [..., in], of the frozen weight's dtype.
        A: [r, in].
        B: [out, r].
        scaling: on the product B A.
        p: probability of dropping an element of x on the low-rank path; 0 for none.
    """
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _GraftedProduct.apply(flat, A, B, layer.bias, layer, scaling, p)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


class _GraftedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, layer: nn.Module, scaling: float, p: float
    ) -> Tensor:
        mask = keep_mask(x, p) if p else None
        seen = x if mask is None else apply_mask(x, mask)
        scale = scaling / (1 - p)
        low = seen @ A.to(x.dtype).T
        y = frozen_product(layer, x)
        y.addmm_(low, B.to(x.dtype).T, alpha=scale)
        needs_x, needs_A = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_A else None, mask if needs_x or needs_A else None, low, A, B)
        ctx.layer, ctx.scale = layer, scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, low, A, B = ctx.saved_tensors
        needs_x, needs_A, needs_B, needs_bias = ctx.needs_input_grad[:4]
        dy = dy.contiguous()
        d_low = (dy @ B.to(dy.dtype)).mul_(ctx.scale)
        dx = None
        if needs_x:
            dx = frozen_input_gradient(ctx.layer, dy)
            if mask is None:
                dx.addmm_(d_low, A.to(dy.dtype))
            else:
                d_seen = d_low @ A.to(dy.dtype)
                dx += apply_mask(d_seen, mask, out=d_seen)
        return (
            dx,
            (d_low.T @ (x if mask is None else apply_mask(x, mask))).to(A.dtype) if needs_A else None,
            # As [r, out], which is several times quicker than [out, r].
            (low.T @ dy).mul_(ctx.scale).T.to(B.dtype) if needs_B else None,
            dy.sum(0) if needs_bias else None,
            None,
            None,
            None,
        )
