"""The grafted linear layer as one autograd function: the same result as `LoraLinear.forward`, in less time and memory.

Let m be the dropout mask (all ones without dropout) and s = scaling / (1 - p). The frozen layer gives its own product
W x + b and input gradient Wᵀ dy (see `model.linear`). Then

    x̃ = m ∘ x              dlow = s · dy B
    low = x̃ Aᵀ             dA = dlowᵀ x̃        dB = s · dyᵀ low
    y = W x + b + s · low Bᵀ       dx = Wᵀ dy + m ∘ (dlow A)

The low-rank parts are added in place. Kept for the backward pass are x (shared by the layers that read the same x),
m (one byte for each element) and low [rows, r], but nothing of the output's size. dx is not computed where no gradient
of x is needed. Where A is frozen (LoRA-FA), dA is not computed and x is not kept. A and B are cast to the dtype of the
activations for the products (they are small); their gradients have the dtypes of A and B. For a few rows without
gradients, as in generation, the low-rank products are computed in the dtype of A and B instead, on a processor by one
C function, because calling torch's operations takes longer than computing them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tsugiki.fast.masks import apply_mask, keep_mask
from tsugiki.model.linear import frozen_input_gradient, frozen_product
from tsugiki.model.products import matrix_product
from tsugiki.native import can_read, native_for

FEW_ROWS = 16  # with more, low-rank products in float32 take longer than in 16 bits
NATIVE_RANKS = 1024  # as in `native.c`
NATIVE_SIZE = 1 << 20  # elements of A and B times rows; above it torch's products, with several threads, are as fast


def grafted_product(layer: nn.Module, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float) -> Tensor:
    """Return W x + b + scaling · B A dropout(x), differentiable in x, A, B and, if it trains, the layer's bias.

    x [..., in] and the result [..., out] have the dtype of the frozen weight. `has_product(layer)` must hold. An
    element of x is dropped on the low-rank path with probability p.
    """
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) <= FEW_ROWS and not p and not torch.is_grad_enabled():
        few = frozen_product(layer, flat)
        add_low_rank(few, flat, A, B, scaling)
        return few.view(*x.shape[:-1], few.shape[-1])
    y: Tensor = _GraftedProduct.apply(flat, A, B, layer.bias, layer, scaling, p)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> None:
    """Add scaling · B A x to y [rows, out] in place, computed in the dtype of A and B.

    x [rows, in] has the dtype of y, and y is contiguous.
    """
    (rows, out), r, width = y.shape, len(A), x.shape[-1]
    call = native_for("low_rank_added", y) if y.is_contiguous() and can_read(x, y.dtype, rows, width) else None
    fits = rows * (A.numel() + B.numel()) <= NATIVE_SIZE and r <= NATIVE_RANKS
    if call is None or not (fits and can_read(A, torch.float32, r, width) and can_read(B, torch.float32, out, r)):
        plain_add_low_rank(y, x, A, B, scaling)
        return
    call(x.data_ptr(), rows, width, out, r, A.data_ptr(), B.data_ptr(), scaling, y.data_ptr())


def plain_add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> None:
    """Compute `add_low_rank` by its definition."""
    y.add_(x.to(A.dtype) @ A.T @ B.T, alpha=scaling)


class _GraftedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, layer: nn.Module, scaling: float, p: float
    ) -> Tensor:
        mask = keep_mask(x, p) if p else None
        seen = x if mask is None else apply_mask(x, mask)
        scale = scaling / (1 - p)
        low = matrix_product(seen, A.to(x.dtype))
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
        d_low = matrix_product(dy, B.to(dy.dtype).T).mul_(ctx.scale)
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
            matrix_product(d_low.T, (x if mask is None else apply_mask(x, mask)).T).to(A.dtype) if needs_A else None,
            # Computed as [r, out], which is several times faster than [out, r].
            matrix_product(low.T, dy.T).mul_(ctx.scale).T.to(B.dtype) if needs_B else None,
            dy.sum(0) if needs_bias else None,
            None,
            None,
            None,
        )
