"""The base class of low-bit frozen linear layers, which are called, moved and cast like `nn.Linear`.

Zen 4 multiplies 8-bit integers twice as fast as bfloat16; a processor with AMX does the opposite (docs/log.md).
So both are measured once, in a fifth of a second, and the times are kept in the cache for the next start.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.io.measurements import is_faster, shortest_seconds
from tsugiki.lowbit import integer_products
from tsugiki.lowbit.integer_products import has_exact_product

_ROWS, _WIDTH = 256, 2048
_REPEATS = 7
_MOST_SECONDS = 0.5


class QuantizedLayer(nn.Module):
    """Replaces a frozen `nn.Linear` or transformers' `Conv1D`, whose float weight is dropped.

    A subclass quantises a weight in `__init__` and defines `product`, `product_of_few`, `input_gradient` and
    `dequantize`, so that it implements `model.linear.QuantizedLinear`. Only `bias` can train. The quantised values are
    parameters that do not train, not buffers, so that FSDP shards them and DDP does not send them to all processes in
    every forward pass.

    Attributes:
        scale: the scale of each output channel, float32 [out].
        means: the mean row of the weight, divided by `scale`, in each group of channels, float32 [groups, in].
        bias: the bias of the replaced layer, [out], or None.
        dtype: the dtype of `weight`.
    """

    scale: nn.Parameter
    means: nn.Parameter

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.bias = bias

    @classmethod
    def from_layer(cls, layer: nn.Module, dtype: torch.dtype) -> Self:
        """Return a quantised layer for `layer`, an `nn.Linear` or a `Conv1D`; the bias is shared."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return cls(weight if isinstance(layer, nn.Linear) else weight.T, layer.bias, dtype)  # type: ignore[arg-type]

    @classmethod
    def restored(
        cls, shape: tuple[int, ...], bias: nn.Parameter | None, dtype: torch.dtype, codes: Mapping[str, Tensor]
    ) -> Self:
        """Return a layer with a weight of this shape, (out, in), from the tensors of a layer that was quantised before.

        `codes` has all parameters except the bias by name; they are not copied.
        """
        layer = cls.__new__(cls)
        QuantizedLayer.__init__(layer, torch.empty(shape, device="meta"), bias, dtype)
        for name, tensor in codes.items():
            setattr(layer, name, nn.Parameter(tensor, requires_grad=False))
        return layer

    @property
    def weight(self) -> Tensor:
        """The dequantised weight in `dtype`, [out, in] for a `Conv1D` too; computed at each access."""
        return self.dequantize().to(self.dtype)

    def product_of_few(self, x: Tensor) -> Tensor | None:
        """Return the product for a few rows [..., in] by a C function; None where it does not apply."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        raise NotImplementedError

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [..., in], differentiable in x and bias; no activation is kept for backward."""
        few = None if torch.is_grad_enabled() else self.product_of_few(x)
        if few is not None:
            return few
        y: Tensor = _Forward.apply(x.reshape(-1, self.in_features), self.bias, self)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def codes(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that represent the weight, which never train: all except the bias."""
        return tuple(parameter for name, parameter in self.named_parameters() if name != "bias")

    def extra_repr(self) -> str:
        """Return what `nn.Linear` shows in its `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` to the tensors, but keep the scales in float32: `.to(dtype)` changes the dtype of `weight`."""
        before = {name: getattr(self, name).detach() for name in ("scale", "means")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            changed = getattr(self, name)
            if changed.dtype != exact.dtype:
                setattr(self, name, nn.Parameter(exact.to(changed.device), requires_grad=False))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before["scale"].device)).dtype
        return self


class _Forward(torch.autograd.Function):
    """W x + b; the weight is frozen, so the backward pass needs no saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLayer) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_x, needs_bias, _ = ctx.needs_input_grad
        return ctx.layer.input_gradient(dy) if needs_x else None, dy.sum(0) if needs_bias else None, None


def integers_pay(x: Tensor) -> bool:
    """Return whether these rows are multiplied in integers: if that is exact, and was faster in a measurement."""
    return has_exact_product(x) and integers_are_faster(x.dtype)


def integers_are_faster(dtype: torch.dtype) -> bool:
    """Return whether an integer product, including the rounding of its rows, is faster than a product in `dtype`."""
    return is_faster(key_of(dtype), partial(measure, dtype), "int8", "float")


def key_of(dtype: torch.dtype) -> str:
    """Return the key of this measurement, for `decide`."""
    return f"products, {dtype}"


def measure(dtype: torch.dtype) -> dict[str, float]:
    """Return the CPU seconds that one thread takes for a product in integers (`int8`) and in `dtype` (`float`)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _WIDTH, generator=generator).to(dtype)
    x[:, ::512] *= 100  # models have a few features that are much larger than the others, which take time as well
    levels = torch.randint(-127, 128, (_WIDTH, _WIDTH), generator=generator).to(torch.int8)
    scale, weight = torch.ones(_WIDTH), levels.to(dtype)
    calls: dict[str, Callable[[], object]] = {
        "int8": partial(integer_products.product, x, [(levels, scale)], None, _WIDTH),
        "float": partial(F.linear, x, weight),
    }
    return shortest_seconds(calls, _REPEATS, _MOST_SECONDS)
