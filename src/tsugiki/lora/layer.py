"""The method itself: a frozen layer with a low-rank branch beside it.

            ┌──────────────── W (frozen) ───────────────┐
        x ──┤                                           ├──(+)── W x + scaling · B A x
            └── dropout ── A [r, in] ── B [out, r] ── · scaling ──┘

Only A and B train: r (in + out) numbers instead of in · out. B starts at zero, so the grafted layer is the
frozen one to the last bit until the first step. `scaling` is alpha / r, as in the paper and in PEFT; some
texts that build LoRA from scratch multiply by alpha alone.

Its relatives are beside: other starts of A and B (`starts`), a trained length of W's rows (`dora`), convolutions
(`conv`).
"""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import TsugikiError
from tsugiki.lora.conv import LoraConv2d
from tsugiki.lora.dora import dora_factor, dora_product, plain_dora, rescale
from tsugiki.lora.initialise import init_orthogonal_, init_pissa_
from tsugiki.lora.product import grafted_product, has_product


class LowRank(nn.Module):
    """The pair of one layer: A [r, in], B [out, r], and the factor on their product.

    For an embedding, `in` is the number of entries: A [r, entries], B [width, r]; for a convolution see `conv`.
    Kept in float32 (float64 for a float64 layer) whatever the frozen weight's dtype.
    """

    magnitude: nn.Parameter | None
    """DoRA's: the trained length of each row of the weight; None elsewhere."""
    norms: Tensor | None
    """DoRA's: the lengths of the frozen weight's rows, [out]."""
    A0: Tensor | None
    """PiSSA's: where A began; None where B A begins at zero."""
    B0: Tensor | None

    def __init__(self, A: Tensor, B: Tensor, scaling: float, dropout: float) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        self.register_parameter("magnitude", None)
        for name in ("norms", "A0", "B0"):
            self.register_buffer(name, None)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The A and B of the update.

        With a start they are of rank 2r, for B A - B0 A0 = B (A - A0) + (B - B0) A0: zero to the bit before training,
        and no small difference of large products, which 16 bits would lose.
        """
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat([self.A - self.A0, self.A0]), torch.cat([self.B, self.B - self.B0], 1)

    def delta(self) -> Tensor:
        """ΔW = scaling · B A, of the weight's shape [out, in]."""
        A, B = self.factors()
        return self.scaling * (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])


class LoraLinear(nn.Module):
    """`nn.Linear` or transformers' `Conv1D` (the same product, weight stored as [in, out]) with a branch.

    `lora` is None while no adapter is active here: then the layer is its frozen base.
    """

    lora: LowRank | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_module("lora", None)
        self.fused = True
        """Compute by `grafted_product`; False: by the definition."""

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + scaling · B A dropout(x); x is [..., in]."""
        pair = self.lora
        if pair is None or not self.fused or not _fits(x, self.base_layer):
            return self.plain(x)
        if pair.magnitude is not None:
            return dora_product(self.base_layer, oriented(self.base_layer), pair, x)
        p = pair.dropout.p if self.training else 0.0
        return grafted_product(self.base_layer, x, *pair.factors(), pair.scaling, p)

    def plain(self, x: Tensor) -> Tensor:
        """The same, as the definition: what `grafted_product` is held to, and what runs where it does not apply."""
        y: Tensor = self.base_layer(x)
        if self.lora is None:
            return y
        if self.lora.magnitude is not None:
            return plain_dora(self.base_layer, oriented(self.base_layer), self.lora, x, y)
        A, B = self.lora.factors()
        low = F.linear(self.lora.dropout(x.to(A.dtype)), A)
        return (y + F.linear(low, B) * self.lora.scaling).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that reads `layer.weight`; while a pair is active, nothing learns through it.

        Raises:
            TsugikiError: in the backward pass, where a loss was computed from it: the pair has no part in that.
        """
        frozen: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.lora is None or not torch.is_grad_enabled():
            return frozen
        passed_by: Tensor = _BypassGuard.apply(frozen, self.lora.A, self.lora.B)  # type: ignore[no-untyped-call]
        return passed_by

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, for code that reads `layer.bias`."""
        return self.base_layer.bias  # type: ignore[return-value]


class _BypassGuard(torch.autograd.Function):
    """The frozen weight as if it depended on the pair, so that a use of it instead of the layer's is seen."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return frozen.view_as(frozen)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise TsugikiError(
            "the loss was computed from the weight of a grafted layer, past its adapter, which would not be trained: "
            "TRL's trainers and Liger's loss do so with the output head; leave it (lm_head, embed_out) out of "
            "target_modules, or train with transformers' Trainer"
        )


def _fits(x: Tensor, layer: nn.Module) -> bool:
    """Whether `grafted_product` computes what calling the layer would."""
    # A compiler fuses the definition itself; autocast chooses types for each operation of it.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return (hasattr(layer, "input_gradient") or x.dtype == layer.weight.dtype) and has_product(layer)


class LoraEmbedding(nn.Module):
    """`nn.Embedding` with a branch: row i of the table gains scaling · B A[:, i]."""

    lora: LowRank | None

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_module("lora", None)

    def forward(self, ids: Tensor) -> Tensor:
        """Table rows of `ids` [...] with their low-rank part, [..., width]."""
        y: Tensor = self.base_layer(ids)
        if self.lora is None:
            return y
        A, B = self.lora.factors()
        low = F.embedding(ids, A.T, padding_idx=self.base_layer.padding_idx)
        update = F.linear(low, B) * self.lora.scaling
        # Gemma's embedding multiplies what it looks up; the low-rank part is looked up too.
        scale = getattr(self.base_layer, "embed_scale", None)
        if scale is not None:
            update = update * torch.as_tensor(scale, dtype=self.base_layer.weight.dtype)
        adapted = y + update
        if self.lora.magnitude is not None:
            adapted = adapted * dora_factor(self.base_layer.weight.T, self.lora)
        return adapted.to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen table, for code that reads `layer.weight`."""
        return self.base_layer.weight


Grafted = LoraLinear | LoraEmbedding | LoraConv2d


def base_of(layer: nn.Module) -> nn.Module:
    """Return the frozen layer of a grafted layer, and any other module itself."""
    return layer.base_layer if isinstance(layer, Grafted) else layer


def grafted_layers(model: nn.Module) -> dict[str, Grafted]:
    """The grafted layers of the model by name, active or not."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Grafted)}


def activate_factors(layer: Grafted, pair: LowRank) -> None:
    """Let this pair compute in the layer, on its device and in its mode.

    What `layer.lora = pair.to(...).train(...)` says, in a hundredth of its time where nothing is to be moved.
    """
    inside = layer._modules
    device = device_of(inside["base_layer"])  # type: ignore[arg-type]
    if pair._parameters["A"].device != device:  # type: ignore[union-attr]
        pair.to(device)
    if pair.training != layer.training:
        pair.train(layer.training)
    inside["lora"] = pair


def deactivate_factors(layers: Sequence[Grafted]) -> None:
    """Leave the frozen layers alone."""
    for layer in layers:
        layer._modules["lora"] = None


def device_of(layer: nn.Module) -> torch.device:
    """Where a frozen layer is; one in few bits would have to make its weight to tell."""
    for own in (layer._parameters, layer._buffers):
        for tensor in own.values():
            if tensor is not None:
                return tensor.device
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.device


def is_conv1d(layer: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, known by name so that this room needs torch alone."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def is_graftable(layer: nn.Module) -> bool:
    """Whether a low-rank branch can be put beside this layer."""
    return isinstance(layer, nn.Embedding | nn.Conv2d) or is_linear(layer)


def is_linear(layer: nn.Module) -> bool:
    """Whether this is a linear layer: torch's, transformers' `Conv1D`, or one that offers its product itself.

    The output layer of `nn.MultiheadAttention` is none: its weight is used without calling it.
    """
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear":
        return False
    return isinstance(layer, nn.Linear) or is_conv1d(layer) or hasattr(layer, "input_gradient")


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer that can be grafted; (entries, width) of an embedding, (channels · kernel, channels)."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels
    if is_conv1d(layer):
        rows, columns = layer.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


def oriented(layer: nn.Module) -> Tensor:
    """The frozen weight as [out, in], of a convolution as [out, in / groups, height, width]."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if _stored_as_in_out(layer) else weight


def wrap(layer: nn.Module) -> Grafted:
    """The grafted form of a layer, with no adapter in it yet."""
    if isinstance(layer, nn.Conv2d):
        return LoraConv2d(layer)
    return LoraEmbedding(layer) if isinstance(layer, nn.Embedding) else LoraLinear(layer)


def new_pair(layer: nn.Module, r: int, scaling: float, dropout: float, init: bool | str) -> LowRank:
    """A fresh pair for `layer`, initialised as PEFT does (see `LoraConfig.init_lora_weights`)."""
    like: Tensor = layer.weight  # type: ignore[assignment]
    dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
    if isinstance(layer, nn.Conv2d):
        shapes = LoraConv2d.shapes(layer, r)
    else:
        in_features, out_features = features(layer)
        shapes = (r, in_features), (out_features, r)
    A, B = (torch.empty(shape, dtype=dtype, device=like.device) for shape in shapes)
    pair = LowRank(A, B, scaling, dropout)
    if isinstance(layer, nn.Embedding):
        nn.init.normal_(pair.B)
        nn.init.zeros_(pair.A) if init else nn.init.normal_(pair.A)
    elif init == "gaussian":
        nn.init.normal_(pair.A, std=1 / r)
        nn.init.zeros_(pair.B)
    elif init == "orthogonal":
        init_orthogonal_(pair)
    elif isinstance(init, str):
        init_pissa_(pair, oriented(layer), init)
    else:
        nn.init.kaiming_uniform_(pair.A, a=math.sqrt(5))
        nn.init.zeros_(pair.B) if init else nn.init.kaiming_uniform_(pair.B, a=math.sqrt(5))
    return pair


def merged_weight(layer: nn.Module, pair: LowRank) -> Tensor:
    """W + ΔW in the layer's own layout and dtype, summed in the pair's precision; a new tensor."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return updated(layer, pair, weight).to(weight.dtype).contiguous()


def updated(layer: nn.Module, pair: LowRank, weight: Tensor) -> Tensor:
    """W + ΔW in the pair's precision, where `weight` is W in the layout of `layer`."""
    turned = _stored_as_in_out(layer)
    delta = pair.delta()
    whole = (weight.T if turned else weight).to(delta.dtype) + delta
    if pair.magnitude is not None:
        whole = rescale(whole, pair.magnitude)
    return whole.T if turned else whole


def _stored_as_in_out(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding) or is_conv1d(layer)
