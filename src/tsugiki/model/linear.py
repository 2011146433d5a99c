"""Operations on the frozen layer under an adapter, for every supported class and precision.

LoRA, the chunked loss and merging need four operations on a frozen linear layer: the product with its weight, the
gradient of its input, reading its weight, and replacing its weight. For `nn.Linear` and transformers' `Conv1D`, the
functions here compute them from the float weight. A quantised layer, such as that of `tsugiki.lowbit.int8`, implements
`QuantizedLinear`, whose methods the functions call.
"""

import math
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.model.products import matrix_product
from tsugiki.model.undo import with_parameters

CHANGED_WEIGHTS = "_tsugiki_changed_weights"
"""The attribute that marks a model whose weights differ from its files, because an adapter was merged into them."""


@runtime_checkable
class QuantizedLinear(Protocol):
    """A frozen linear layer whose weight is not a float parameter.

    Besides these methods, the layer is an `nn.Module` with the attributes `in_features`, `out_features`, `bias`, and
    `dtype`, the dtype of its property `weight`. The device is that of its parameters or buffers.
    """

    def product(self, x: Tensor) -> Tensor:
        """Return W x + b for x [rows, in], a new tensor [rows, out] of the dtype of x, without recording gradients."""

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return Wᵀ dy for dy [rows, out], a new tensor [rows, in] of the dtype of dy."""

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""


def is_quantized(layer: nn.Module) -> bool:
    """Return whether the layer implements `QuantizedLinear`."""
    kind: type = type(layer)
    return _implements_quantized_linear(kind)


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether the layer is transformers' `Conv1D`, a linear layer whose weight is stored as [in, out].

    This package imports torch only, so the class is looked up among the modules that are already imported: if
    transformers is not imported, no layer can be a `Conv1D`.
    """
    conv1d = _conv1d_class()
    return conv1d is not None and isinstance(layer, conv1d)


def is_linear(layer: nn.Module) -> bool:
    """Return whether the layer is a linear layer on which a low-rank branch can be put.

    The output layer of `nn.MultiheadAttention` is not, because its weight is used without calling the layer. Nor is a
    subclass of `nn.Linear` that computes something else, such as a router that returns the chosen experts.
    """
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward or _computes_linear(layer)
    return is_conv1d(layer) or is_quantized(layer)


def is_graftable(layer: nn.Module) -> bool:
    """Return whether a low-rank branch can be put on the layer: a linear layer, an embedding or a 2-d convolution."""
    return isinstance(layer, nn.Embedding | nn.Conv2d) or is_linear(layer)


def is_stored_in_out(layer: nn.Module) -> bool:
    """Return whether the layer's weight is stored as [in, out], the transpose of `nn.Linear`'s."""
    return isinstance(layer, nn.Embedding) or is_conv1d(layer)


def is_hooked(layer: nn.Module, equivalent: Callable[..., Tensor] | None = None) -> bool:
    """Return whether calling the layer may do more than its class's `forward`: it has hooks or a replaced `forward`.

    `linear_of_matrix` does not count, because it computes the same as `nn.Linear.forward`, and neither does
    `equivalent`, a function that computes the same as the class's `forward`. The hooks of DeepSpeed's
    ZeRO-3 do not count either: they gather the weight before a call, and ZeRO-3 also gathers a weight that is read
    without a call, then and before the backward pass of the module that reads it. They do count for a quantised layer,
    whose backward pass reads more tensors than its forward pass.
    """
    if layer._forward_hooks or layer._forward_pre_hooks:
        hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
        modules = [str(getattr(hook, "__module__", "")) for hook in hooks]
        if is_quantized(layer) or not all(module.startswith("deepspeed.") for module in modules):
            return True
    replaced = vars(layer).get("forward")
    function = getattr(replaced, "func", replaced)
    return function is not None and function is not linear_of_matrix and function is not equivalent


def is_autocast_enabled(device: torch.device) -> bool:
    """Return whether autocast is on for this device; False for the meta device, which has none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return the (in, out) sizes of a layer that can be grafted.

    For an embedding they are (entries, width), for a convolution (in channels · kernel size, out channels).
    """
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels
    if is_conv1d(layer):
        rows, columns = layer.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


def oriented(layer: nn.Module) -> Tensor:
    """Return the frozen weight as [out, in], or a convolution's kernel as [out, in / groups, height, width]."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if is_stored_in_out(layer) else weight


def device_of(layer: nn.Module) -> torch.device:
    """Return the device of the layer, without dequantising its weight."""
    for own in (layer._parameters, layer._buffers):  # much faster than iterating over `layer.parameters()`
        for tensor in own.values():
            if tensor is not None:
                return tensor.device
    return next(chain(layer.parameters(), layer.buffers())).device


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return the tensor on `device`, and in another dtype if one is given, without waiting for the device if possible.

    Only pinned memory may be freed or written again while it is still being copied, and only CUDA's is pinned here. So
    the copy to any other device is finished when this returns.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, dtype, non_blocking=True)
    return tensor.to(device, dtype)


def factor_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype in which an adapter's factors for this layer train: float64 for float64, otherwise float32."""
    dtype = layer.dtype if is_quantized(layer) else layer.weight.dtype
    assert isinstance(dtype, torch.dtype)
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_product(layer: nn.Module) -> bool:
    """Return whether `frozen_product` is equivalent to calling the layer.

    It is not for subclasses and hooked layers, which may compute anything, nor for a layer whose weight trains.
    """
    if is_hooked(layer):
        return False
    kind: type = type(layer)
    if kind is nn.Linear or kind is _conv1d_class():
        weight = layer._parameters.get("weight")
        return weight is not None and _is_dense(weight) and not weight.requires_grad
    return _implements_quantized_linear(kind)


def linear_of_matrix(
    layer: nn.Module, x: Tensor, product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = matrix_product
) -> Tensor:
    """Return W x + b for x [..., in] and an `nn.Linear` or a `Conv1D`, by `product` of x, W [out, in] and b."""
    parameters = layer._parameters  # an attribute takes a microsecond, which counts while text is generated
    weight: Tensor = parameters["weight"]  # type: ignore[assignment]
    return product(x, weight.T if is_conv1d(layer) else weight, parameters["bias"])


def frozen_product(layer: nn.Module, x: Tensor) -> Tensor:
    """Return W x + b for x [rows, in], a new tensor [rows, out]; `has_product(layer)` must hold."""
    replaced = vars(layer).get("forward")  # `linear_of_matrix`
    if replaced is not None:
        return replaced(x)  # type: ignore[no-any-return]
    if is_quantized(layer):
        return layer.product(x)  # type: ignore[operator, no-any-return]
    return linear_of_matrix(layer, x)


def frozen_input_gradient(layer: nn.Module, dy: Tensor) -> Tensor:
    """Return Wᵀ dy for dy [rows, out], a new tensor [rows, in]; `has_product(layer)` must hold."""
    if is_quantized(layer):
        return layer.input_gradient(dy)  # type: ignore[operator, no-any-return]
    return matrix_product(dy, oriented(layer).T)


def select_outputs(layer: nn.Module, outputs: Tensor) -> nn.Module | None:
    """Return a frozen layer that computes only these outputs, int64 [n], of a layer for which `has_product` holds.

    None for layers whose rows cannot be selected without dequantising all of them.
    """
    if type(layer) is nn.Linear:
        part = nn.Linear(layer.in_features, len(outputs), bias=False, device="meta")
        part.weight = nn.Parameter(layer.weight.detach()[outputs], requires_grad=False)
        part.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[outputs], requires_grad=False)
        return part
    select = getattr(layer, "select_outputs", None)
    return None if select is None else select(outputs)


def _computes_linear(layer: nn.Linear) -> bool:
    """Return whether the `forward` of a subclass of `nn.Linear` computes x Wᵀ + b, by a trial with random weights.

    Subclasses of quantisation libraries, whose weights are integers or 8-bit floats, are known to compute it.
    """
    weight = layer._parameters.get("weight")
    if weight is None or weight.itemsize == 1:
        return True
    kind = type(layer), *weight.shape
    if kind not in _tried:  # small weights take less time, but a layer may split its weight into parts
        _tried[kind] = _multiplies_by(layer, 3, 4) or _multiplies_by(layer, layer.in_features, layer.out_features)
    return _tried[kind]


_tried: dict[tuple[Any, ...], bool] = {}


def _multiplies_by(layer: nn.Linear, in_features: int, out_features: int) -> bool:
    """Return whether a copy of the layer with a random weight [out, in] computes x Wᵀ + b."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device="cpu") - 0.5

    x, weight = draw(2, in_features), draw(out_features, in_features)
    bias = None if layer.bias is None else draw(out_features)
    trial = with_parameters(layer, {"weight": weight, "bias": bias})
    try:
        with torch.no_grad():
            y = type(layer).forward(trial, x)
    except Exception:  # any error of the class's own code
        return False
    expected = F.linear(x, weight, bias)
    return isinstance(y, Tensor) and y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-3, atol=1e-3)


def _is_dense(weight: nn.Parameter) -> bool:
    """Return whether the weight is an ordinary parameter, not a subclass of a quantisation library or of FSDP."""
    return type(weight) is nn.Parameter


@cache
def _implements_quantized_linear(kind: type) -> bool:
    return issubclass(kind, QuantizedLinear)


def _conv1d_class() -> type[nn.Module] | None:
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
