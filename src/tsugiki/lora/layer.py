"""The method itself: a frozen layer with a low-rank branch beside it.

            ┌──────────────── W (frozen) ───────────────┐
        x ──┤                                           ├──(+)── W x + scaling · B A x
            └── dropout ── A [r, in] ── B [out, r] ── · scaling ──┘

Only A and B train: r (in + out) numbers instead of in · out. B starts at zero, so the grafted layer is the
frozen one to the last bit until the first step. `scaling` is alpha / r, as in the paper and in PEFT; some
texts that build LoRA from scratch multiply by alpha alone.
"""

import math
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import TsugikiError
from tsugiki.lora.product import grafted_product, has_product


class LowRank(nn.Module):
    """The pair of one layer: A [r, in], B [out, r], and the factor on their product.

    For an embedding, `in` is the number of entries: A [r, entries], B [width, r].
    Kept in float32 (float64 for a float64 layer) whatever the frozen weight's dtype.
    """

    def __init__(
        self, in_features: int, out_features: int, r: int, scaling: float, dropout: float, like: Tensor
    ) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
        self.A = nn.Parameter(torch.empty(r, in_features, dtype=dtype, device=like.device))
        self.B = nn.Parameter(torch.empty(out_features, r, dtype=dtype, device=like.device))
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)

    def delta(self) -> Tensor:
        """ΔW = scaling · B A, [out, in]."""
        return self.scaling * (self.B @ self.A)


class LoraLinear(nn.Module):
    """`nn.Linear` or transformers' `Conv1D` (the same product, weight stored as [in, out]) with a branch.

    `lora` is None while no adapter is active here: then the layer is its frozen base.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora: LowRank | None = None
        self.fused = True
        """Compute by `grafted_product`; False: by the definition."""

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + scaling · B A dropout(x); x is [..., in]."""
        pair = self.lora
        if pair is None or not self.fused or not _fits(x, self.base_layer):
            return self.plain(x)
        p = pair.dropout.p if self.training else 0.0
        return grafted_product(self.base_layer, x, pair.A, pair.B, pair.scaling, p)

    def plain(self, x: Tensor) -> Tensor:
        """The same, as the definition: what `grafted_product` is held to, and what runs where it does not apply."""
        y: Tensor = self.base_layer(x)
        if self.lora is None:
            return y
        low = F.linear(self.lora.dropout(x.to(self.lora.A.dtype)), self.lora.A)
        return (y + F.linear(low, self.lora.B) * self.lora.scaling).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that reads `layer.weight`; while a pair is active, nothing learns through it.

        Raises:
            TsugikiError: in the backward pass, where a loss was computed from it: the pair has no part in that.
        """
        frozen: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.lora is None or not torch.is_grad_enabled():
            return frozen
        passed_by: Tensor = _PassedBy.apply(frozen, self.lora.A, self.lora.B)  # type: ignore[no-untyped-call]
        return passed_by

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, for code that reads `layer.bias`."""
        return self.base_layer.bias  # type: ignore[return-value]


class _PassedBy(torch.autograd.Function):
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

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora: LowRank | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Table rows of `ids` [...] with their low-rank part, [..., width]."""
        y: Tensor = self.base_layer(ids)
        if self.lora is None:
            return y
        low = F.embedding(ids, self.lora.A.T, padding_idx=self.base_layer.padding_idx)
        update = F.linear(low, self.lora.B) * self.lora.scaling
        # Gemma's embedding multiplies what it looks up; the low-rank part is looked up too.
        scale = getattr(self.base_layer, "embed_scale", None)
        if scale is not None:
            update = update * torch.as_tensor(scale, dtype=self.base_layer.weight.dtype)
        return (y + update).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen table, for code that reads `layer.weight`."""
        return self.base_layer.weight


Grafted = LoraLinear | LoraEmbedding


def grafted_layers(model: nn.Module) -> dict[str, Grafted]:
    """The grafted layers of the model by name, active or not."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear | LoraEmbedding)}


def is_conv1d(layer: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, known by name so that this room needs torch alone."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def is_graftable(layer: nn.Module) -> bool:
    """Whether a low-rank branch can be put beside this layer."""
    return isinstance(layer, nn.Embedding) or is_linear(layer)


def is_linear(layer: nn.Module) -> bool:
    """Whether this is a linear layer: torch's, transformers' `Conv1D`, or one that offers its product itself."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer) or hasattr(layer, "input_gradient")


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer that can be grafted; (entries, width) of an embedding."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if is_conv1d(layer):
        rows, columns = layer.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


def wrap(layer: nn.Module) -> Grafted:
    """The grafted form of a layer, with no adapter in it yet."""
    return LoraEmbedding(layer) if isinstance(layer, nn.Embedding) else LoraLinear(layer)


def new_pair(layer: nn.Module, r: int, scaling: float, dropout: float, init: bool | Literal["gaussian"]) -> LowRank:
    """A fresh pair for `layer`, initialised as PEFT does (see `LoraConfig.init_lora_weights`)."""
    in_features, out_features = features(layer)
    like: Tensor = layer.weight  # type: ignore[assignment]
    pair = LowRank(in_features, out_features, r, scaling, dropout, like)
    if isinstance(layer, nn.Embedding):
        nn.init.normal_(pair.B)
        nn.init.zeros_(pair.A) if init else nn.init.normal_(pair.A)
    elif init == "gaussian":
        nn.init.normal_(pair.A, std=1 / r)
        nn.init.zeros_(pair.B)
    else:
        nn.init.kaiming_uniform_(pair.A, a=math.sqrt(5))
        nn.init.zeros_(pair.B) if init else nn.init.kaiming_uniform_(pair.B, a=math.sqrt(5))
    return pair


def merged_weight(layer: nn.Module, pair: LowRank) -> Tensor:
    """W + ΔW in the layer's own layout and dtype, summed in the pair's precision; a new tensor."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    delta = pair.delta() if isinstance(layer, nn.Linear) else pair.delta().T
    return (weight.to(delta.dtype) + delta).to(weight.dtype)
