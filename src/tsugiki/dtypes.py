"""Names of dtypes, and the dtypes that this machine computes in.

Settings and flags call dtypes `fp32`, `fp16`, `bf16` and, for quantised bases, `int8`, `nf4` and `nf4-int8`. GGUF files
have names of their own. The settings and the command line import this module, so it imports torch only inside
functions.
"""

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

ComputeDtype: TypeAlias = Literal["bf16", "fp16", "fp32"]
"""The dtype of the matrix products."""
QuantizedDtype: TypeAlias = Literal["int8", "nf4", "nf4-int8"]
"""The dtype of quantised linear layers. `int8` quantises the output head as well, and `nf4` (4 bits) does not;
`nf4-int8` has linear layers in 4 bits and the head in 8."""
BaseDtype: TypeAlias = Literal["bf16", "fp16", "fp32", "int8", "nf4", "nf4-int8"]
"""The dtype of the base's weights while an adapter trains. What is not quantised gets the dtype of
`preferred_compute_dtype`."""
LoadDtype: TypeAlias = Literal["bf16", "fp16", "fp32", "int8", "nf4", "nf4-int8", "auto"]
"""The dtype to load weights in. `auto` means the same as in transformers: the dtype that the model's config names, or
else the dtype of its files."""
SaveDtype: TypeAlias = Literal["fp32", "fp16", "bf16"]
"""The dtype of the weights in a saved model."""
GgufDtype: TypeAlias = Literal["q8_0", "f16"]
"""The type of the tensors that a merge into a GGUF file changes, by its name in llama.cpp."""

_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def torch_dtype(name: str) -> "torch.dtype":
    """Return the torch dtype for one of the names `fp32`, `fp16`, `bf16` and `int8`."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def quantized_dtype(name: LoadDtype | None) -> QuantizedDtype | None:
    """Return the dtype if it is one of those of quantised linear layers; None for all others."""
    return name if name in ("int8", "nf4", "nf4-int8") else None


def name_of_dtype(dtype: "torch.dtype") -> ComputeDtype:
    """Return the name of a float dtype of at most 32 bits."""
    names: tuple[ComputeDtype, ...] = ("bf16", "fp16", "fp32")
    return next(name for name in names if torch_dtype(name) == dtype)


def at_least_float32(dtype: "torch.dtype") -> "torch.dtype":
    """Return the dtype for trained weights and exact results: float64 if `dtype` is float64, otherwise float32."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def processor_has_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 matrices without converting them to float32 first."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def preferred_compute_dtype(device: "torch.device | None" = None) -> ComputeDtype:
    """Return `bf16` if a device multiplies bfloat16 natively; otherwise `fp16` for CUDA and XPU, and `fp32`.

    Processors are slow in float16. On MPS, every version that multiplies float16 well has bfloat16 as well.

    Args:
        device: None: this machine's accelerator, or its processor if it has none.
    """
    import torch

    device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cpu":
        return "bf16" if processor_has_bf16() else "fp32"
    if _accelerator_has_bf16(device):
        return "bf16"
    return "fp16" if device.type in ("cuda", "xpu") else "fp32"


def _accelerator_has_bf16(device: "torch.device") -> bool:
    """Return whether an accelerator multiplies bfloat16 matrices, by a trial product where torch cannot tell."""
    import torch

    if device.type in ("cuda", "xpu"):  # torch multiplies them on every card, but by emulation on old ones
        return bool(torch.get_device_module(device).is_bf16_supported(including_emulation=False))
    try:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones == 2).all())
    except (RuntimeError, TypeError):  # macOS 13 and earlier
        return False
