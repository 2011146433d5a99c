"""LoRA beside a convolution: the same two steps, the first of them a convolution itself.

        x ──┬── W [out, in / groups, kh, kw] (frozen) ──────────────────┬──(+)── y
            └── dropout ── A [r, in, kh, kw] ── B [out, r / groups, 1, 1] ── · scaling ──┘

A has the layer's kernel, stride, padding and dilation, so its r channels have the size of the layer's output; B mixes
them at each place. r (in · kh · kw + out) numbers train. With one group B A is a kernel of the layer's own shape, into
which it can be merged: ΔW[o, i] = scaling · Σ_r B[o, r] A[r, i]. Of a layer in groups A sees all channels and B is in
as many groups, as in PEFT; that is no kernel of the layer's shape, so it cannot be merged, and r must be a multiple of
the groups. (PEFT's A has no dilation, and does not fit where the layer has.)
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lora.dora import plain_factor
from tsugiki.lora.masks import dropout

if TYPE_CHECKING:
    from tsugiki.lora.layer import LowRank


class LoraConv2d(nn.Module):
    """`nn.Conv2d` with a branch; `lora` is None while no adapter is active here."""

    lora: "LowRank | None"

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_module("lora", None)

    @staticmethod
    def shapes(layer: nn.Conv2d, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of A and B for this layer."""
        return (r, layer.in_channels, *layer.kernel_size), (layer.out_channels, r // layer.groups, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """W * x + b + scaling · B * (A * dropout(x)); x is [rows, in, height, width]."""
        layer, pair = self.base_layer, self.lora
        y: Tensor = layer(x)
        if pair is None:
            return y
        p = pair.dropout.p if pair.training else 0.0
        seen = dropout(x, p)
        low = F.conv2d(seen.to(pair.A.dtype), pair.A, None, layer.stride, layer.padding, layer.dilation)
        update = F.conv2d(low, pair.B, groups=layer.groups) * pair.scaling
        if pair.magnitude is None:
            return (y + update).to(y.dtype)
        factor = plain_factor(layer.weight, pair).view(-1, 1, 1)  # see `dora`
        turned = layer(seen) if p else y
        if layer.bias is not None:
            turned = turned - layer.bias.view(-1, 1, 1)
        return (y + (factor - 1) * turned + factor * update).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen kernel, for code that reads `layer.weight`."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, for code that reads `layer.bias`."""
        return self.base_layer.bias
