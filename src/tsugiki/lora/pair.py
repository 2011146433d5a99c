"""The pair of factors A and B that LoRA trains for one layer, and the layer that holds it."""

import torch
from torch import Tensor, nn

from tsugiki.model.undo import Wrapper


class LowRank(nn.Module):
    """The factors A [r, in] and B [out, r] of one layer's update, and the scaling of their product.

    For an embedding, `in` is the number of entries and `out` the width; for a convolution see `lora.variants`. The
    factors are kept in float32 (float64 for a float64 layer), whatever the dtype of the frozen weight.

    Tensors that do not train are parameters as well, not buffers, so that FSDP shards them and DDP does not send them
    to all processes in every forward pass.
    """

    magnitude: nn.Parameter | None
    """DoRA: the trained length of each row of the weight. None without DoRA."""
    norms: nn.Parameter | None
    """DoRA: the lengths of the frozen weight's rows, [out]. None without DoRA."""
    A0: nn.Parameter | None
    """PiSSA: A before training. None if the initial B A is zero."""
    B0: nn.Parameter | None
    """PiSSA: B before training."""
    bias: nn.Parameter | None
    """A trained bias [out] that is added to B A x before the scaling. None unless `lora_bias` is set."""

    def __init__(self, A: Tensor, B: Tensor, scaling: float, dropout: float) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        for name in ("magnitude", "norms", "A0", "B0", "bias"):
            self.register_parameter(name, None)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the factors whose product is the update.

        For PiSSA they have rank 2r, since the update is B A - B0 A0 = B (A - A0) + (B - B0) A0. In this form it is
        exactly zero before training. As the difference of two large products, a small update would be lost in 16 bits.
        """
        if self.A.is_meta and "_hf_hook" in vars(self):  # accelerate offloads modules until they are called
            self._hf_hook.pre_forward(self)  # type: ignore[union-attr, operator]
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat([self.A - self.A0, self.A0]), torch.cat([self.B, self.B - self.B0], 1)

    def delta(self) -> Tensor:
        """Return ΔW = scaling · B A in the shape of the weight, [out, in]."""
        A, B = self.factors()
        return self.scaling * (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])


class Grafted(Wrapper):
    """A frozen layer, `base_layer`, with a pair.

    `lora` is None while no adapter is active in the layer; the layer then computes the same as its frozen base.
    """

    lora: LowRank | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_module("lora", None)

    def extra_repr(self) -> str:
        """Say who made the layer, also to whoever reads why PEFT cannot adapt it again."""
        return "grafted already, by tsugiki.graft"

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that reads `layer.weight`."""
        weight: Tensor = self.base_layer.weight
        return weight

    @property
    def out_features(self) -> int:
        """The width of the output, for code that reads `layer.out_features`."""
        width: int = self.base_layer.out_features
        return width

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, for code that reads `layer.bias`."""
        bias: Tensor | None = self.base_layer.bias
        return bias
