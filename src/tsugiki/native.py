"""The C functions of `native.c`, which are compiled when Tsugiki is installed (`hatch_build.py`).

Each does in one pass over memory what takes torch several, with the same bits (`low_rank_added`: to rounding). Where no
compiler was found, torch computes: the definition beside every call is complete without them. A call does not hold
Python's interpreter lock.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("_native.so")
"""The compiled functions, with this name on every system."""
_SIGNATURES = {
    "rotated": "pnnn",
    "rounded": "pnnnnppp",
    "dithered": "pnnnpppp",
    "scaled": "pnnppppn",
    "added": "pnnppppnpp",
    "looked_up": "pnppp",
    "nf4": "ppnnppp",
    "nf4_codes": "pnnnppp",
    "low_rank_added": "pnnnnppdp",
}
"""The arguments of each kind of function: p for a pointer, n for a whole number, d for another number."""
_VERSION = 4
"""Of these arguments; a library that was compiled for others, from an older checkout, is not called."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


@cache
def native(kind: str, dtype: str = "") -> Callable[..., None] | None:
    """Return a C function, which takes the `data_ptr()` of tensors on the processor; None where there is none.

    Args:
        kind: one of `_SIGNATURES`.
        dtype: the function for this dtype, if there are several.
    """
    library = _library()
    function = getattr(library, f"{kind}_{dtype}" if dtype else kind, None)
    if library is None or function is None:
        return None
    function.argtypes, function.restype = [_TYPES[argument] for argument in _SIGNATURES[kind]], None
    return function  # type: ignore[no-any-return]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        return library if library.interface_version() == _VERSION else None
    except (OSError, AttributeError):  # it was not compiled, or for another system
        return None
