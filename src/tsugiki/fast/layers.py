"""The layers of `tsugiki.lora`, fast: the same results as by their definition, in less time and memory.

    linear layers      one autograd function (`fast.product`), also for DoRA
    convolutions       cheap dropout masks (`fast.masks`)
    experts            products with the factors instead of updated weights (`LowRankSum`)

Only the `forward` of a layer's instance is replaced, and `in_place_of` of an expert's pair. Where a product does not
apply, such as while torch compiles, they call the method of the class, the definition.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.fast.masks import dropout
from tsugiki.fast.product import grafted_product
from tsugiki.lora.experts import ParameterPair
from tsugiki.lora.graft import add_adapter as add_plain_adapter
from tsugiki.lora.hold import Adapter
from tsugiki.lora.layer import LoraLinear
from tsugiki.lora.pair import LowRank
from tsugiki.lora.variants import LoraConv2d, dora_factor
from tsugiki.model.linear import frozen_product, has_product, is_autocast_enabled, is_hooked, is_quantized, oriented
from tsugiki.model.undo import replace_forward


def add_adapter(model: nn.Module, adapter: Adapter, name: str, *, base_dropout: bool | None = None) -> None:
    """Do the same as `lora.graft.add_adapter`, and let the new layers compute fast."""
    add_plain_adapter(model, adapter, name, base_dropout=base_dropout)
    use_fast_products(model)


def use_fast_products(model: nn.Module) -> None:
    """Let all grafted layers of a model compute fast, in place, with all adapters that the model holds."""
    for module in model.modules():
        if isinstance(module, LoraLinear) and "forward" not in vars(module):
            replace_forward(module, partial(_linear, module), [])
        elif isinstance(module, LoraConv2d) and "forward" not in vars(module):
            replace_forward(module, partial(_convolution, module), [])
        elif isinstance(module, ParameterPair):
            module.in_place_of = partial(_low_rank_sum, module)  # type: ignore[method-assign]


def computes_fast(layer: nn.Module) -> bool:
    """Return whether calling this layer does no more than `use_fast_products` lets it do, or than its class does."""
    return not is_hooked(layer, equivalent=_linear)


def _linear(layer: LoraLinear, x: Tensor) -> Tensor:
    modules = layer._modules  # an attribute takes a microsecond, which counts while text is generated
    base, pair = cast(nn.Module, modules["base_layer"]), cast("LowRank | None", modules["lora"])
    if pair is None and "forward" in vars(base):  # such as `linear_of_matrix`
        return type(layer).forward(layer, x)
    if not _can_fuse(x, base):
        return type(layer).forward(layer, x)
    if pair is None:
        # torch multiplies some inputs (LED's) by a frozen weight in another order than by a trainable one.
        if is_quantized(base):
            return type(layer).forward(layer, x)
        return frozen_product(base, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
    parameters = pair._parameters
    if parameters["bias"] is not None:
        return type(layer).forward(layer, x)
    if parameters["magnitude"] is not None:
        return _dora_product(base, pair, x)
    p = pair.dropout.p if layer.training else 0.0
    return grafted_product(base, x, *pair.factors(), pair.scaling, p)


def _can_fuse(x: Tensor, layer: nn.Module) -> bool:
    """Return whether `grafted_product` is equivalent to calling the layer."""
    # A compiler fuses the definition itself; autocast chooses a dtype for each of its operations; a layer of another
    # class or with hooks has no product.
    if torch.compiler.is_compiling() or is_autocast_enabled(x.device):
        return False
    return has_product(layer) and (is_quantized(layer) or x.dtype == layer.weight.dtype)


def _dora_product(layer: nn.Module, pair: LowRank, x: Tensor) -> Tensor:
    """Compute `lora.variants.dora_linear` with `grafted_product`, which must apply to the layer.

    With dropout, W x and W x̃ are two products, as in the definition.
    """
    A, B = pair.factors()
    p = pair.dropout.p if pair.training else 0.0
    dropped = dropout(x, p)
    z = grafted_product(layer, dropped, A, B, pair.scaling, 0.0)
    # 16 bits represent g, which is near 1, only coarsely, but g - 1 well.
    excess = (dora_factor(oriented(layer), pair) - 1).to(z.dtype)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    without_bias = z if bias is None else z - bias
    if not p:
        return torch.addcmul(z, without_bias, excess)
    update = F.linear(F.linear(dropped, A.to(z.dtype)), (B * pair.scaling).to(z.dtype))
    return torch.addcmul(layer(x) + update, without_bias, excess)


def _convolution(layer: LoraConv2d, x: Tensor) -> Tensor:
    if layer.lora is None or torch.compiler.is_compiling():
        return type(layer).forward(layer, x)
    return layer.with_dropped(x, dropout(x, layer.lora.dropout.p if layer.lora.training else 0.0))


def _low_rank_sum(pair: ParameterPair, weight: Tensor) -> Any:
    if torch.compiler.is_compiling():  # a compiler knows tensors only
        return type(pair).in_place_of(pair, weight)
    return LowRankSum(weight, *pair.matrices(), pair.scaling)


_MULTIPLE = 8
"""Grouped products require rows of a multiple of 16 bytes, which are 8 elements of 16 bits."""


class LowRankSum:
    """The matrices weight + scaling · left @ right, [..., m, n], in the place of the tensor `weight`.

    left is [..., m, r], and right [..., r, n]. The weight and its update are multiplied one after the other and never
    added:

        x (W + s · L R)  =  x W + s · (x L) R

    A model that multiplies by its experts' weights in its own way, one after the other or all in one grouped product,
    gets a `LowRankSum` in the place of the weight. Its own product with W runs unchanged, so an update of zero changes
    no bit, and the product with the factors is added. ΔW = s · L R of all experts, which is as large as W, is not
    formed, nor is its gradient. All other operations get the sum itself, which is the definition.
    """

    def __init__(self, weight: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
        self.weight, self.left, self.right, self.scaling = weight, left, right, scaling

    @cached_property
    def sum(self) -> Tensor:
        """The sum, in the dtype of the weight."""
        return (self.weight + self.scaling * (self.left @ self.right)).to(self.weight.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute a torch function that has a `LowRankSum` among its arguments; torch calls this."""
        kwargs = kwargs or {}
        product = _PRODUCTS.get(func)
        result = NotImplemented if product is None else product(*args, **kwargs)
        return func(*_summed(args), **_summed(kwargs)) if result is NotImplemented else result

    def __getitem__(self, index: Any) -> Any:
        """Return one matrix of a stack, or the matrices that a tensor of indices selects."""
        selects = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
        if self.weight.dim() != 3 or not (selects or type(index) is int):
            return self.sum[index]
        if selects and index.dim():
            return LowRankSum(self.weight[index], self.left[index], self.right[index], self.scaling)
        left, right = self._one_by_one
        return LowRankSum(self.weight[index], left[int(index)], right[int(index)], self.scaling)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the weight, such as its shape or dtype, or a method of the sum."""
        if name.startswith("__"):  # `copy` and `pickle` ask for them before the weight is there
            raise AttributeError(name)
        attribute = getattr(self.weight, name)
        return attribute if name in _METHODS_OF_THE_WEIGHT or not callable(attribute) else getattr(self.sum, name)

    def transpose(self, dim0: int, dim1: int) -> Any:
        """Exchange two axes."""
        last = {self.weight.dim() - 2, self.weight.dim() - 1}
        if {dim0 % self.weight.dim(), dim1 % self.weight.dim()} != last:
            return self.sum.transpose(dim0, dim1)
        return LowRankSum(self.weight.transpose(-2, -1), self.right.mT, self.left.mT, self.scaling)

    @property
    def mT(self) -> Any:
        """The transposes of the matrices."""
        return self.transpose(-2, -1)

    @property
    def T(self) -> Any:
        """The transpose of one matrix."""
        return self.mT if self.weight.dim() == 2 else self.sum.T

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    @cached_property
    def _one_by_one(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The factors as tuples: each indexing of a stack would give a gradient of the size of the whole stack."""
        return self.left.unbind(), self.right.unbind()


_METHODS_OF_THE_WEIGHT = (
    "size", "dim", "ndimension", "data_ptr", "numel", "element_size", "stride", "is_floating_point",
)  # fmt: skip


def _add(y: Tensor, x: Tensor, left: Tensor, right: Tensor, scaling: float, product: Callable[..., Tensor]) -> Tensor:
    """Return y + scaling · x left right, in the dtype of y.

    On a processor, small products in 16 bits are slower than in the 32 bits of the factors.
    """
    dtype = left.dtype if x.device.type == "cpu" else x.dtype
    low = product(product(x.to(dtype), left.to(dtype)), right.to(dtype))
    return torch.add(y, low.to(y.dtype), alpha=scaling)


def _matmul(*args: Any, **kwargs: Any) -> Any:
    if kwargs or len(args) != 2 or all(isinstance(operand, LowRankSum) for operand in args):
        return NotImplemented
    a, b = args
    if isinstance(a, LowRankSum):
        return _add(torch.matmul(a.weight, b), b, a.right, a.left, a.scaling, lambda x, factor: factor @ x)
    return _add(torch.matmul(a, b.weight), a, b.left, b.right, b.scaling, torch.matmul)


def _linear_with_sum(input: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, LowRankSum):
        return NotImplemented
    y = F.linear(input, weight.weight, bias)
    return _add(y, input, weight.right, weight.left, weight.scaling, F.linear)


def _grouped_mm(*args: Any, offs: Any = None, **others: Any) -> Any:
    if offs is None or any(option is not None for option in others.values()) or len(args) != 2:
        return NotImplemented
    x, stack = args
    if not isinstance(stack, LowRankSum):
        return NotImplemented
    padding = -stack.left.shape[-1] % _MULTIPLE
    left, right = F.pad(stack.left, (0, padding)), F.pad(stack.right, (0, 0, 0, padding))
    product = partial(torch._grouped_mm, offs=offs)
    return _add(product(x, stack.weight), x, left, right, stack.scaling, product)


_PRODUCTS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        F.linear: _linear_with_sum,
        torch.matmul: _matmul,
        torch.bmm: _matmul,
        torch.mm: _matmul,
        Tensor.matmul: _matmul,  # x @ W, too
        getattr(torch, "_grouped_mm", None): _grouped_mm,  # what F.grouped_mm calls
    }
)


def _summed(nested: Any) -> Any:
    """Return arguments with the sum in the place of each LowRankSum."""
    if isinstance(nested, LowRankSum):
        return nested.sum
    if isinstance(nested, dict):
        return {key: _summed(item) for key, item in nested.items()}
    return type(nested)(map(_summed, nested)) if isinstance(nested, list | tuple) else nested
