"""Weights in huge pages, while text is generated on a processor.

Each token reads all weights. Processors fetch memory ahead only up to the end of a page, which normally has 4 KiB; in
pages of 2 MiB, a token of SmolLM2 in bfloat16 takes 23 ms instead of 34 (docs/log.md).
"""

import ctypes

from torch import nn

from tsugiki.io.system import c_function

_PAGE = 2 << 20  # bytes, of x86-64 and of ARM with small pages of 4 KiB
_COLLAPSE = 25  # MADV_COLLAPSE, man 2 madvise; since Linux 6.1
_GAP = 64 << 10  # bytes between two weights that may lie in one page


def use_huge_pages(model: nn.Module) -> None:
    """Let Linux copy the parameters and buffers of a model on the processor to huge pages, at the same addresses.

    Their values, and the pointers to them, do not change. Making a huge page takes 1 to 6 ms, and almost no
    time if it is one already. Nothing happens on another system, with an older kernel, or where no huge page is free.
    """
    if (madvise := c_function("madvise")) is None:
        return
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end in _spans(model):
        first, last = -(-begin // _PAGE) * _PAGE, end // _PAGE * _PAGE
        if first < last:
            madvise(first, last - first, _COLLAPSE)


def _spans(model: nn.Module) -> list[tuple[int, int]]:
    """Return the beginnings and ends of the memory of all parameters and buffers; near ones are one span."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cpu]
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors):
        if spans and begin - spans[-1][1] < _GAP:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((begin, end))
    return spans
