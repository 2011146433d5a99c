"""RMSNorm (arXiv:1910.07467) with a frozen weight.

    y = x q s,   q = 1 / √(mean x² + eps) for each row,   s = offset + weight
    dx = q (dy s) - x q³ mean(x dy s)

Only x and q, one number for each row, are kept for the backward pass; autograd would also keep x in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.activations import eager_on_cpu
from tsugiki.native import can_read, native_for


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute RMSNorm by its definition, in float32 or wider; arguments as in `rms_norm`."""
    exact = x.to(at_least_float32(x.dtype))
    inverse = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
    return (exact * inverse * (offset + weight)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute `plain_rms_norm` for x [..., width], rounding once; if the weight trains, by the definition.

    The weight [width] has the dtype of x. The offset is 0 for Llama and 1 for Gemma.
    """
    if weight.requires_grad or not eager_on_cpu(x, weight):
        return plain_rms_norm(x, weight, eps, offset)
    return _RmsNorm.apply(x, weight, eps, offset)  # type: ignore[no-any-return, no-untyped-call]


def generated_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute `rms_norm` while text is generated, without gradients: by a C function in one pass, if it is available.

    It sums in another order than `rms_norm`, so the results are equal up to rounding. Arguments as in `rms_norm`.
    """
    call, width = native_for("rms_norm", x) if not torch.is_grad_enabled() else None, x.shape[-1]
    if call is None or not width or not can_read(weight, x.dtype, width):
        return rms_norm(x, weight, eps, offset)
    x = x.contiguous()
    y = torch.empty_like(x)
    call(x.data_ptr(), x.numel() // width, width, weight.data_ptr(), eps, offset, y.data_ptr())
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        exact = x.to(at_least_float32(x.dtype))
        inverse = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.offset = offset
        y: Tensor = _times(exact, inverse, of=x).mul_(offset + weight.to(exact.dtype)).to(x.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, inverse, weight = ctx.saved_tensors
        exact = x.to(inverse.dtype)
        scaled = _times(grad.to(inverse.dtype), ctx.offset + weight.to(inverse.dtype), of=grad)
        along = torch.linalg.vecdot(scaled, exact).unsqueeze(-1).mul_(inverse.pow(3)).div_(x.shape[-1])
        return scaled.mul_(inverse).addcmul_(exact, along, value=-1).to(x.dtype), None, None, None


def _times(exact: Tensor, factor: Tensor, of: Tensor) -> Tensor:
    """Return exact · factor, in the memory of `exact` if that is a converted copy `of` another tensor.

    Allocating new memory would take more time than the product.
    """
    return torch.mul(exact, factor, out=None if exact is of else exact)
