"""The method itself: a frozen layer with a low-rank branch beside it.

            ┌──────────────── W (frozen) ───────────────┐
        x ──┤                                           ├──(+)── W x + scaling · B A x
            └── dropout ── A [r, in] ── B [out, r] ── · scaling ──┘

Only A and B train: r (in + out) parameters instead of in · out. B is initialised to zero, so before the first step the
grafted layer is bit-identical to the frozen one. `scaling` is alpha / r, as in the paper and in PEFT; some texts that
build LoRA from scratch multiply by alpha alone.

This package is the definition. `tsugiki.fast` computes the same in less time and memory: the public `tsugiki.graft`
replaces the `forward` of grafted layers by its products (`fast.layers`).
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import TsugikiError
from tsugiki.lora.init import init_orthogonal_, init_pissa_, init_random_
from tsugiki.lora.pair import Grafted, LowRank
from tsugiki.lora.variants import LoraConv2d, dora_factor, dora_linear, rescale
from tsugiki.model.linear import device_of, factor_dtype, features, is_stored_in_out, oriented


class LoraLinear(Grafted):
    """A linear layer (see `model.linear.is_linear`) with a low-rank branch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b + scaling · B A dropout(x) for x [..., in]."""
        y: Tensor = self.base_layer(x)
        if self.lora is None:
            return y
        if self.lora.magnitude is not None:
            return dora_linear(self.base_layer, self.lora, x, y)
        A, B = self.lora.factors()
        low = F.linear(self.lora.dropout(x.to(A.dtype)), A)
        return (y + F.linear(low, B, self.lora.bias) * self.lora.scaling).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that reads `layer.weight`; while a pair is active, it cannot be differentiated.

        Raises:
            TsugikiError: in the backward pass of a loss that was computed from this weight: such a loss skips the
                adapter, which would not train.
        """
        frozen: Tensor = self.base_layer.weight
        if self.lora is None or not torch.is_grad_enabled():
            return frozen
        guarded: Tensor = _BypassGuard.apply(frozen, self.lora.A, self.lora.B)  # type: ignore[no-untyped-call]
        return guarded


class _BypassGuard(torch.autograd.Function):
    """Returns the frozen weight as if it depended on A and B, so that the backward pass raises an error."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return frozen.view_as(frozen)

    @staticmethod
    def backward(ctx: Any, *_args: Tensor) -> NoReturn:
        raise TsugikiError(
            "the loss was computed from the weight of a grafted layer instead of by calling the layer, so its "
            "adapter would not train. TRL's trainers and Liger's loss do this with the output head: leave the "
            "head (lm_head, embed_out) out of target_modules, or train with transformers' Trainer"
        )


class LoraEmbedding(Grafted):
    """`nn.Embedding` with a low-rank branch: row i of the table gains scaling · B A[:, i]."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of the updated table for `ids` [...], as [..., width]."""
        y: Tensor = self.base_layer(ids)
        if self.lora is None:
            return y
        A, B = self.lora.factors()
        low = F.embedding(ids, A.T, padding_idx=self.base_layer.padding_idx)
        update = F.linear(low, B) * self.lora.scaling
        # Gemma's embedding multiplies the rows that it looks up by a constant, so the update is multiplied, too.
        scale = getattr(self.base_layer, "embed_scale", None)
        if scale is not None:
            update = update * torch.as_tensor(scale, dtype=self.base_layer.weight.dtype)
        adapted = y + update
        if self.lora.magnitude is not None:
            adapted = adapted * dora_factor(self.base_layer.weight.T, self.lora)
        return adapted.to(y.dtype)


def grafted_layers(model: nn.Module) -> dict[str, Grafted]:
    """Return the grafted layers of the model by name, whether or not an adapter is active in them."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Grafted)}


def wrap(layer: nn.Module) -> Grafted:
    """Return the grafted layer around `layer`, without a pair."""
    if isinstance(layer, nn.Conv2d):
        return LoraConv2d(layer)
    return LoraEmbedding(layer) if isinstance(layer, nn.Embedding) else LoraLinear(layer)


def activate_factors(layer: Grafted, pair: LowRank) -> None:
    """Let the layer compute with this pair, which is moved to the layer's device and training or evaluation mode.

    This does the same as `layer.lora = pair.to(...).train(...)`, a hundred times faster if nothing has to be moved.
    """
    children = layer._modules
    device = device_of(children["base_layer"])  # type: ignore[arg-type]
    # accelerate offloads modules one by one, and the pair may be in memory while the weight is not
    offloaded = device.type == "meta" and "_hf_hook" in vars(children["base_layer"])
    if pair._parameters["A"].device != device and not offloaded:  # type: ignore[union-attr]
        pair.to(device)
    if pair.training != layer.training:
        pair.train(layer.training)
    children["lora"] = pair


def deactivate_factors(layers: Sequence[Grafted]) -> None:
    """Let the layers compute the same as their frozen bases."""
    for layer in layers:
        layer._modules["lora"] = None


def pair_shapes(layer: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and B of rank r for this layer."""
    if isinstance(layer, nn.Conv2d):
        return (r, layer.in_channels, *layer.kernel_size), (layer.out_channels, r // layer.groups, 1, 1)
    in_features, out_features = features(layer)
    return (r, in_features), (out_features, r)


def new_pair(layer: nn.Module, r: int, scaling: float, dropout: float, init: bool | str) -> LowRank:
    """Return a new pair of rank r for a frozen layer, initialised as in PEFT (see `LoraConfig.init_lora_weights`)."""
    # The values are computed on the processor, so that they are the same on every device. Decompositions are slow or
    # missing on some accelerators.
    device = device_of(layer)
    at = device if device.type == "meta" else torch.device("cpu")
    A, B = (torch.empty(shape, dtype=factor_dtype(layer), device=at) for shape in pair_shapes(layer, r))
    pair = LowRank(A, B, scaling, dropout)
    if isinstance(layer, nn.Embedding):
        nn.init.normal_(pair.B)
        nn.init.zeros_(pair.A) if init else nn.init.normal_(pair.A)
    elif init == "orthogonal":
        init_orthogonal_(pair)
    elif str(init).startswith("pissa"):
        init_pissa_(pair, oriented(layer).to(at), str(init))
    else:
        init_random_(pair, r, init)
    return pair.to(device)


def updated_weight(layer: nn.Module, pair: LowRank, weight: Tensor) -> Tensor:
    """Return W + ΔW in the dtype of the pair; for DoRA with the trained lengths of its rows.

    W has the layer's layout, and is not read from the layer, since it may be in a file.
    """
    in_out = is_stored_in_out(layer)
    delta = pair.delta()
    updated = (weight.T if in_out else weight).to(delta.dtype) + delta
    if pair.magnitude is not None:
        updated = rescale(updated, pair.magnitude)
    return updated.T if in_out else updated
