"""Products of a few rows with a frozen weight on a processor, as for each new token while text is generated.

Such a product takes as long as reading the weight. At each call, oneDNN copies a weight in bfloat16 to the layout of
the processor's matrix unit; on one thread it reads 4 to 8 GB in a second where the memory gives 11 to 25 (docs/log.md).
The C functions read the weight once, without a copy. They need AMX or AVX512-BF16, or AVX512-VNNI for integers; the one
for float32 runs everywhere. They use one thread; if torch uses several threads, its own product is used, because it can
be faster.
"""

import math

import torch
from torch import Tensor

from tsugiki.model.products import matrix_product
from tsugiki.native import address, can_read, native_for

FEW_ROWS = 12
"""The largest number of rows in bfloat16 for AVX512. With more, torch's product is as fast."""
FEW_TRANSPOSED_ROWS = 4
"""The same for a weight that is stored as [in, out]."""
FEW_FLOAT_ROWS = 8
"""The same in float32."""
FEW_AMX_ROWS = 32
"""The same for AMX."""
LEAST_AMX_ROWS = 4
"""The smallest number of rows for AMX and a weight that is stored as [out, in]. Fewer are faster by AVX-512, which
reads the weight in the order of the memory."""
FEW_TRANSPOSED_AMX_ROWS = 16
"""The same for AMX and a weight that is stored as [in, out]."""
FEW_INTEGER_ROWS = 8
"""The largest number of rows of integers."""
FEW_CODED_ROWS = 16
"""The largest number of rows for a weight in NF4, on any number of threads: torch on several threads is slower, because
it needs the weight decoded first."""


def few_rows_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + bias, [..., out]. The result equals that of `matrix_product` up to rounding.

    The C functions compute it for few rows in bfloat16 or float32, on one thread, without gradients: the one for AMX if
    the processor has it and there are enough rows, otherwise the one for AVX-512 or for float32. `matrix_product`
    computes everything else.

    Args:
        x: [..., in].
        weight: [out, in], or the transpose of a weight that is stored as [in, out].
        bias: [out], or None.
    """
    # This runs for each layer and each token, so the checks need few Python calls.
    if torch.is_grad_enabled() or torch.get_num_threads() > 1 or not _fit(x, weight, bias):
        return matrix_product(x, weight, bias)
    if weight.is_contiguous():
        kind, most = "few_rows", FEW_ROWS if x.dtype is torch.bfloat16 else FEW_FLOAT_ROWS
        least_by_amx, most_by_amx = LEAST_AMX_ROWS, FEW_AMX_ROWS
    elif weight.mT.is_contiguous():
        kind, most = "few_rows_transposed", FEW_TRANSPOSED_ROWS
        least_by_amx, most_by_amx = 1, FEW_TRANSPOSED_AMX_ROWS
    else:
        return matrix_product(x, weight, bias)
    (out, width), rows = weight.shape, x.numel() // weight.shape[1]
    amx = native_for(f"{kind}_amx", x) if least_by_amx <= rows <= most_by_amx else None
    call = amx or (native_for(kind, x) if rows <= most else None)
    if call is None:
        return matrix_product(x, weight, bias)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], out)
    # For AMX, the pairs of 32 rows of x or the sums of 16 rows; for transposed weights on AVX-512, the sums of 4 rows.
    memory = torch.empty(16, max(out, width) + 31, dtype=torch.float32, device="cpu")
    call(x.data_ptr(), rows, width, out, out, *map(address, (weight, bias, memory, y)))
    return y


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether C functions can multiply these tensors; if not, torch does, and reports shapes that do not fit."""
    dtype, shape = x.dtype, weight.shape
    if weight.dtype is not dtype or not weight.is_cpu or len(shape) != 2 or x.shape[-1:] != shape[1:] or not shape[1]:
        return False
    return can_read(bias, dtype, shape[0])


def few_integer_rows(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    blocks: int,
    m: Tensor | None = None,
    levels: Tensor | None = None,
) -> Tensor | None:
    """Return the same as `integer_products.product` for one tile, [..., out]; None if the C function does not apply.

    It rounds the rows and multiplies them on one thread. The integers, and so the results, are the same. The codes of
    NF4 are decoded a channel at a time, which stays in the cache; their product does not depend on torch's threads.

    Args:
        x: [..., in], of a float dtype.
        w: int8 [out, in], or the codes of NF4, uint8 [out, in / 2].
        scale: float32 [out].
        bias: [out] of any float dtype, or None.
        blocks: the number of blocks of the rotation; 1: no rotation.
        m: for NF4, the m of each block, uint8 [out, in / 64].
        levels: for NF4, the level of each m and code, int8 [256, 16].
    """
    (*rest, width), out = x.shape, w.shape[0]
    rows = math.prod(rest)
    most, unit, of_w = FEW_CODED_ROWS, 64, (torch.uint8, out, width // 2)
    if m is None:
        most, unit, of_w = FEW_INTEGER_ROWS if torch.get_num_threads() == 1 else 0, blocks, (torch.int8, out, width)
    if rows > most or width % unit:
        return None
    fits = can_read(w, *of_w) and can_read(m, torch.uint8, out, width // 64)
    if not (fits and can_read(scale, torch.float32, out)):
        return None
    bias = None if bias is None else bias.detach().float()
    call = native_for("few_integer_rows", x)
    if call is None or not can_read(bias, torch.float32, out):
        return None
    x, y = x.contiguous(), x.new_empty(*rest, out)
    memory = torch.empty(16 * rows + 5 * width + 2 * rows * width, dtype=torch.uint8)
    call(x.data_ptr(), rows, width, out, blocks, *map(address, (w, m, levels, scale, bias, memory, y)))
    return y
