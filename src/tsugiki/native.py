"""The C functions of `native.c`, which are compiled when Tsugiki is installed (`hatch_build.py`).

Each computes in one pass over memory what takes torch several passes. The results are bit-identical to torch's, except
those of `low_rank_added`, `rows_added`, `rms_norm`, `decode_attention`, `attention` and `few_rows` of floats, which are
equal up to rounding. Without a compiled library, or without the processor's instructions, callers compute the same in
torch, by the definition beside each call. A call releases Python's global interpreter lock.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIBRARY = Path(__file__).with_name("_native" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so"))
"""The compiled library, to which `hatch_build.py` gives the same name."""
_SIGNATURES = {
    "rotated": "pnnn",
    "rounded": "pnnnnpppppp",
    "large_added": "pnnnpppppp",
    "dithered": "pnnnpppp",
    "scaled": "pnnppppn",
    "added": "pnnppppnpp",
    "looked_up": "pnppp",
    "nf4": "ppnnppp",
    "nf4_codes": "pnnnppp",
    "low_rank_added": "pnnnnppdp",
    "rows_added": "pnnnnpp",
    "rms_norm": "pnnpddp",
    "decode_attention": "pppnnnnnppppnnpndpp",
    "attention": "pnnp",
    "attention_amx": "pnnp",
    "few_rows": "pnnnnpppp",
    "few_rows_transposed": "pnnnnpppp",
    "few_integer_rows": "pnnnnppppppp",
    "few_rows_amx": "pnnnnpppp",
    "few_rows_transposed_amx": "pnnnnpppp",
}
"""The argument types of each kind of function: p for a pointer, n for int64, d for a double."""
_VERSION = 13
"""The version of these signatures. A library that was compiled for another version, such as from an older checkout, is
not used."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


@cache
def native(kind: str, dtype: str = "") -> Callable[..., None] | None:
    """Return a C function, which takes the `data_ptr()` of tensors on the CPU; None if it is not available.

    Args:
        kind: a key of `_SIGNATURES`.
        dtype: the suffix of the function's name, such as `bfloat16`, if there is a function for each dtype.
    """
    library, name = _library(), f"{kind}_{dtype}" if dtype else kind
    function = getattr(library, name, None)
    if library is None or function is None:
        return None
    has_instructions = getattr(library, f"has_{name}", None)  # for functions that not every processor can run
    if has_instructions is not None and not has_instructions():
        return None
    function.argtypes, function.restype = [_TYPES[argument] for argument in _SIGNATURES[kind]], None
    return function  # type: ignore[no-any-return]


def is_compiled() -> bool:
    """Return whether there is a library that is used. It does not import torch."""
    return _library() is not None


def native_for(kind: str, tensor: "Tensor") -> Callable[..., None] | None:
    """Return the C function for the dtype of a tensor on the CPU; None if there is none, or while torch compiles."""
    import torch

    if not tensor.is_cpu or torch.compiler.is_compiling():
        return None
    return native(kind, _name(tensor.dtype))


def can_read(tensor: "Tensor | None", dtype: "torch.dtype", *shape: int) -> bool:
    """Return whether a C function can read a tensor as contiguous memory of this dtype and shape; None is none to read.

    A C function does not check what it gets. So each caller checks it, and otherwise lets torch compute, whose errors
    say what does not fit.
    """
    if tensor is None:
        return True
    return tensor.dtype is dtype and tensor.shape == shape and tensor.is_cpu and tensor.is_contiguous()


def address(tensor: "Tensor | None") -> int | None:
    """Return where the numbers of a tensor are, which is null for None."""
    return None if tensor is None else tensor.data_ptr()


@cache
def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        return library if library.interface_version() == _VERSION else None
    except (OSError, AttributeError):  # it was not compiled, or was compiled for another system
        return None
