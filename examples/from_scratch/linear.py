"""Step 2: a pretrained layer with a LoRA branch.

GPT-2 in transformers uses `Conv1D` layers, which compute the same product with a transposed weight. Its only
`nn.Linear` is the output head, so code that looks for `nn.Linear` finds no other layer.

    nn.Linear   weight [out, in]    y = x weightᵀ + bias
    Conv1D      weight [in, out]    y = x weight  + bias

The branch uses only x and y, so it works with both layouts. The layout matters for reading in and out from the shape,
and for the weight form.

    python examples/from_scratch/linear.py
"""

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora import LoRALayer


class LinearWithLoRA(nn.Module):
    """A frozen pretrained layer plus a trainable LoRA branch: y = layer(x) + s · B (A x).

    Args:
        linear: the pretrained layer. It is frozen and used without copying.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
    """

    def __init__(self, linear: nn.Linear | Conv1D, rank: int, alpha: float) -> None:
        super().__init__()
        in_features, out_features = features(linear)
        self.linear = linear.requires_grad_(False)
        self.lora = LoRALayer(in_features, out_features, rank, alpha).to(linear.weight)  # its device and dtype

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output plus the branch; [..., in] -> [..., out]."""
        y: Tensor = self.linear(x) + self.lora(x)
        return y

    def merged(self) -> nn.Linear | Conv1D:
        """Return the weight form: a plain layer of the same class with the weight W + ΔW, at no extra cost per call."""
        delta = self.lora.delta_weight()  # [out, in]
        plain = copy.deepcopy(self.linear)
        with torch.no_grad():
            plain.weight += delta if isinstance(plain, nn.Linear) else delta.T
        return plain


def features(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (in, out) of a layer, read from its weight in the layout of its class."""
    rows, columns = linear.weight.shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def main() -> None:
    """Add a branch to GPT-2's query-key-value projection, a `Conv1D`."""
    torch.manual_seed(0)
    x = torch.randn(4, 768, dtype=torch.float64)
    c_attn = Conv1D(3 * 768, 768).double()
    print("the weight of c_attn has the shape", list(c_attn.weight.shape), "for (in, out) =", features(c_attn))

    layer = LinearWithLoRA(c_attn, rank=8, alpha=16)
    print("trainable:", ", ".join(f"{name} {list(p.shape)}" for name, p in layer.named_parameters() if p.requires_grad))
    print("bit-identical to the frozen layer before training:", torch.equal(layer(x), c_attn(x)))

    nn.init.normal_(layer.lora.B)  # stands for a trained B
    print("still identical after B has changed:", torch.equal(layer(x), c_attn(x)))
    print("equal to its merged layer:", torch.allclose(layer(x), layer.merged()(x)))


if __name__ == "__main__":
    main()
