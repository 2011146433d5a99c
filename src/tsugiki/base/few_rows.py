"""Products of a few rows with a frozen weight on a processor, as for each new token while text is generated.

Such a product takes as long as reading the weight. For a weight in bfloat16, oneDNN arranges it anew for the
processor's matrix unit at each call, and reads 4 to 7 GB in a second where the memory gives 11 (docs/log.md). The C
functions read it once. They are used on processors with AVX512-BF16, and with AVX512-VNNI for integers.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.base.threads import in_threads
from tsugiki.native import native_for

FEW_ROWS = 4
"""The largest number of rows in bfloat16. With more, computing takes longer than reading."""
FEW_INTEGER_ROWS = 8
"""The same of rows of integers."""
_COLUMNS = 32  # as in `native.c`
_LEAST_SIZE = 1 << 20
"""The smallest number of elements of a weight that several threads share."""


def few_rows_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + bias, up to rounding `plain_product`, which computes it where the C functions do not apply.

    They do not apply while gradients are recorded.

    Args:
        x: [rows, in].
        weight: [out, in], or the transpose of a weight that is stored as [in, out].
        bias: [out], or None.
    """
    # It is called for each layer and each token, so the checks are few calls of Python.
    dtype = torch.bfloat16
    if x.shape[0] > FEW_ROWS or not (x.dtype is weight.dtype is dtype and (bias is None or bias.dtype is dtype)):
        return plain_product(x, weight, bias)
    call = native_for("few_rows" if weight.is_contiguous() else "few_rows_transposed", x)
    if call is None or not (weight.is_contiguous() or weight.mT.is_contiguous()) or torch.is_grad_enabled():
        return plain_product(x, weight, bias)
    y = x.new_empty(x.shape[0], weight.shape[0])
    _compute(call, x.contiguous(), weight, None if bias is None else bias.contiguous(), y)
    return y


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `few_rows_product` as the layer does: `nn.Linear`, or `Conv1D` for a transposed weight."""
    if bias is None or weight.is_contiguous():
        return F.linear(x, weight, bias)
    return torch.addmm(bias, x, weight.T)


def integer_product(q: Tensor, w: Tensor) -> Tensor:
    """Return q wᵀ, int32 [rows, out], for q [rows, in] with integers from -127 to 127 and w int8 [out, in]: exact."""
    call = native_for("few_rows", q) if len(q) <= FEW_INTEGER_ROWS else None
    if call is None or not w.is_contiguous():
        return torch._int_mm(q, w.T)
    y = torch.empty(len(q), len(w), dtype=torch.int32)
    _compute(call, q.contiguous(), w, None, y)
    return y


def _compute(call: Callable[..., None], x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write the product into y, in as many threads as torch uses, if the weight is large enough."""
    out, threads = weight.shape[0], torch.get_num_threads()
    if threads == 1 or weight.numel() < _LEAST_SIZE:
        _compute_channels(call, x, weight, bias, y, (0, out))
        return
    bounds = [out * part // threads for part in range(threads + 1)]
    in_threads(partial(_compute_channels, call, x, weight, bias, y), [*pairwise(bounds)])


def _compute_channels(
    call: Callable[..., None], x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, channels: tuple[int, int]
) -> None:
    (rows, width), (start, stop) = x.shape, channels
    of_weight = weight.data_ptr() + start * weight.stride(0) * weight.itemsize
    of_bias = 0 if bias is None else bias.data_ptr() + start * bias.itemsize
    of_y = y.data_ptr() + start * y.itemsize
    if weight.is_contiguous():
        call(x.data_ptr(), rows, width, stop - start, y.shape[1], of_weight, of_bias, of_y)
        return
    sums = torch.zeros(rows, math.ceil((stop - start) / _COLUMNS) * _COLUMNS)
    call(x.data_ptr(), rows, width, stop - start, y.shape[1], of_weight, of_bias, sums.data_ptr(), of_y)
