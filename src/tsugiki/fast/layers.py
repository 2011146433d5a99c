"""The layers of `tsugiki.lora`, fast: the same results as by their definition, in less time and memory.

    linear layers      one autograd function (`fast.product`), also for DoRA
    convolutions       cheap dropout masks (`fast.masks`)
    experts            products with the factors instead of updated weights (`fast.low_rank_sum`)

Only the `forward` of a layer's instance is replaced, and `in_place_of` of an expert's pair. Where a product does not
apply, such as while torch compiles, they call the method of the class, the definition.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.fast.low_rank_sum import LowRankSum
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
