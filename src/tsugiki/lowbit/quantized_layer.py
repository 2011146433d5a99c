"""The base classes of low-bit frozen linear layers, which are called, moved and cast like `nn.Linear`.

Zen 4 multiplies 8-bit integers twice as fast as bfloat16; a processor with AMX does the opposite (docs/log.md).
So both are measured once, in a fifth of a second, and the times are kept in the cache for the next start.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from threading import local
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.dtypes import ComputeDtype, name_of_dtype
from tsugiki.io.measurements import kept_seconds, shortest_seconds
from tsugiki.lowbit import integer_products
from tsugiki.lowbit.integer_products import CHANNELS, Tile, has_exact_product, mean_row, split
from tsugiki.lowbit.threads import in_threads, with_one_thread

_local = local()
"""The buffer of each thread."""
_ROWS, _WIDTH = 256, 2048
_REPEATS = 7
_MOST_SECONDS = 0.5
_decided: dict[torch.dtype, bool] = {}
_lock = threading.Lock()


class QuantizedLayer(nn.Module):
    """Replaces a frozen `nn.Linear` or transformers' `Conv1D`, whose float weight is dropped.

    A subclass quantises a weight in `__init__` and defines `product`, `input_gradient` and `dequantize`, so that it
    implements `model.linear.QuantizedLinear`. Only `bias` can train. The quantised values are parameters that do not
    train, not buffers, so that FSDP shards them and DDP does not send them to all processes in every forward pass.

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
        rows = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled():
            y: Tensor = _Forward.apply(rows, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            y = self.product(rows)
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


class DecodedLayer(QuantizedLayer):
    """A layer whose weight is decoded for each product, one tile of output channels at a time.

        codes of a tile ──> int8 levels, or floats, in a buffer ──> product ──> the next tile overwrites the buffer

    With integers, the products are those of `integer_products`. Where they are slower, or not exact, the codes are
    decoded into floats of the dtype of the activations. A subclass defines `decode_levels`, `decode_weight` and
    `padded_width`, and sets `scale` and `means`.
    """

    @property
    def padded_width(self) -> int:
        """The length of a decoded row: `in_features`, plus zeros that fill up the last block."""
        return self.in_features

    def decode_levels(self, channels: slice, out: Tensor) -> None:
        """Write the integers w of some output channels, where W ≈ scale · w, to `out`, int8 [channels, padded]."""
        raise NotImplementedError

    def decode_weight(self, channels: slice, out: Tensor) -> None:
        """Write the weight of some output channels to `out`, [channels, padded] of a float dtype."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        weight = torch.empty(self.out_features, self.padded_width, device=self.scale.device)
        self.decode_weight(slice(0, self.out_features), weight)
        return weight[:, : self.in_features].contiguous()

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        x = F.pad(x, (0, self.padded_width - self.in_features)) if self.padded_width > self.in_features else x
        if integers_pay(x):
            return integer_products.product(x, self._level_tiles(), self.bias, self.out_features)
        y = x.new_empty(len(x), self.out_features)
        with torch.no_grad():
            for channels, weight in self._weight_tiles(x.dtype):
                bias = None if self.bias is None else self.bias[channels].to(x.dtype)
                y[:, channels] = F.linear(x, weight, bias)
        return y

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if integers_pay(dy):
            dx = integer_products.input_gradient(dy, self._level_tiles(), self.means, self.padded_width)
        else:
            dx = dy.new_zeros(len(dy), self.padded_width)
            for channels, weight in self._weight_tiles(dy.dtype):
                dx.addmm_(dy[:, channels], weight)
        return dx[:, : self.in_features].contiguous()

    def mean_levels(self) -> Tensor:
        """Return the mean row of the integers in each tile, float32 [tiles, padded], for `means`."""
        with torch.no_grad():
            return torch.stack([mean_row(levels) for levels, _ in self._level_tiles()])

    def _level_tiles(self) -> Iterator[Tile]:
        for channels, buffer in self._in_buffer(torch.int8):
            self._decode(self.decode_levels, channels, buffer)
            yield buffer, self.scale[channels]

    def _weight_tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        for channels, buffer in self._in_buffer(dtype):
            self._decode(self.decode_weight, channels, buffer)
            yield channels, buffer

    def _decode(self, decode: Callable[[slice, Tensor], None], channels: slice, buffer: Tensor) -> None:
        """Decode a tile; on the CPU, each thread decodes some of its channels."""
        threads = torch.get_num_threads() if buffer.device.type == "cpu" else 1
        step = max(1, math.ceil(len(buffer) / threads))

        def decode_from(start: int) -> None:
            part = buffer[start : start + step]
            decode(slice(channels.start + start, channels.start + start + len(part)), part)

        in_threads(decode_from, range(0, len(buffer), step))

    def _in_buffer(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the channels of each tile, and the part of one buffer that they are decoded into."""
        sizes = [len(part) for part in split(self.scale, CHANNELS)]
        buffer = _buffer(max(sizes) * self.padded_width, dtype, self.scale.device).view(-1, self.padded_width)
        start = 0
        for size in sizes:
            yield slice(start, start + size), buffer[:size]
            start += size


def _buffer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for `size` elements; on the CPU it is reused, because allocating it takes longer than decoding.

    A thread has one buffer, so no two tiles of a thread may be in use at once.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(size, dtype=dtype, device=device)
    kept: Tensor | None = getattr(_local, "buffer", None)
    if kept is None or len(kept) < size * dtype.itemsize:
        with torch.inference_mode(False):  # the buffer may be used outside of inference mode as well
            kept = _local.buffer = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
    return kept[: size * dtype.itemsize].view(dtype)


def product_dtype(model: nn.Module) -> ComputeDtype | Literal["int8"] | None:
    """Return the dtype in which a model's decoded layers are multiplied on the CPU.

    Returns None if the model has no decoded layer, or it is on another device.
    """
    layer = next((module for module in model.modules() if isinstance(module, DecodedLayer)), None)
    if layer is None or layer.scale.device.type != "cpu":
        return None
    if integers_pay(torch.empty(2, 2, dtype=layer.dtype)):
        return "int8"
    return name_of_dtype(layer.dtype)


def integers_pay(x: Tensor) -> bool:
    """Return whether these rows are multiplied in integers: if that is exact, and was faster in a measurement."""
    return has_exact_product(x) and integers_are_faster(x.dtype)


def integers_are_faster(dtype: torch.dtype) -> bool:
    """Return whether an integer product, including the rounding of its rows, is faster than a product in `dtype`."""
    with _lock:  # all threads of a run wait for the same answer
        if dtype not in _decided:
            seconds = kept_seconds(f"products, {dtype}", partial(measure, dtype))
            _decided[dtype] = seconds["int8"] < seconds["float"]
        return _decided[dtype]


def decide(dtype: torch.dtype, integers: bool) -> None:
    """Set the answer for this process, because a run that is resumed must compute in the same dtype as before."""
    _decided[dtype] = integers


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
    with with_one_thread():
        return shortest_seconds(calls, _REPEATS, _MOST_SECONDS)
