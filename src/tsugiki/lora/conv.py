"""LoRA on a convolution: the same two steps, of which the first is a convolution.

        x ──┬── W [out, in / groups, kh, kw] (frozen) ──────────────────┬──(+)── y
            └── dropout ── A [r, in, kh, kw] ── B [out, r / groups, 1, 1] ── · scaling ──┘

A has the kernel size, stride, padding and dilation of the layer, so its r output channels have the size of the layer's
output; B mixes these channels at each position. r (in · kh · kw + out) parameters train. Without groups, B A is a
kernel of the layer's shape and can be merged: ΔW[o, i] = scaling · Σ_r B[o, r] A[r, i]. In a layer with groups, A sees
all input channels and B has as many groups as the layer, as in PEFT. This is not a kernel of the layer's shape, so it
cannot be merged, and r must be a multiple of the number of groups. (PEFT's A ignores the layer's dilation, so PEFT
cannot adapt a layer with dilation.)
"""

from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lora.dora import plain_factor
from tsugiki.lora.masks import dropout
from tsugiki.lora.pair import LowRank


class LoraConv2d(nn.Module):
    """`nn.Conv2d` with a low-rank branch; `lora` is None while no adapter is active in the layer."""

    lora: LowRank | None

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_module("lora", None)

    @staticmethod
    def shapes(layer: nn.Conv2d, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B for this layer."""
        return (r, layer.in_channels, *layer.kernel_size), (layer.out_channels, r // layer.groups, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return W * x + b + scaling · B * (A * dropout(x)) for x [rows, in, height, width]."""
        layer, pair = self.base_layer, self.lora
        y: Tensor = layer(x)
        if pair is None:
            return y
        p = pair.dropout.p if pair.training else 0.0
        dropped = dropout(x, p)
        low = F.conv2d(dropped.to(pair.A.dtype), pair.A, None, layer.stride, layer.padding, layer.dilation)
        update = F.conv2d(low, pair.B, groups=layer.groups) * pair.scaling
        if pair.magnitude is None:
            return (y + update).to(y.dtype)
        factor = plain_factor(layer.weight, pair).view(-1, 1, 1)  # see `dora`
        frozen = layer(dropped) if p else y
        if layer.bias is not None:
            frozen = frozen - layer.bias.view(-1, 1, 1)
        return (y + (factor - 1) * frozen + factor * update).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The frozen kernel, for code that reads `layer.weight`."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, for code that reads `layer.bias`."""
        return self.base_layer.bias
