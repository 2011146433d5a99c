"""Second step: a layer that someone else has trained, with a branch beside it.

GPT-2 in transformers has hardly an `nn.Linear`: its layers are `Conv1D`, the same product with the weight stored the
other way round. Code that looks for `nn.Linear` alone finds the output head and nothing else.

    nn.Linear   weight [out, in]    y = x weightᵀ + bias
    Conv1D      weight [in, out]    y = x weight  + bias

The branch works on x and y and does not care. Only the shape's order, and the weight form, have to know.

    python examples/from_scratch/linear.py
"""

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora import LoRALayer


class LinearWithLoRA(nn.Module):
    """A frozen layer and the pair that trains in its place: y = layer(x) + s · B (A x).

    Args:
        linear: the pretrained layer. It is kept, not copied, and frozen.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
    """

    def __init__(self, linear: nn.Linear | Conv1D, rank: int, alpha: float) -> None:
        super().__init__()
        in_features, out_features = features(linear)
        self.linear = linear.requires_grad_(False)
        self.lora = LoRALayer(in_features, out_features, rank, alpha).to(linear.weight)  # its device and dtype

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the branch added; [..., in] -> [..., out]."""
        y: Tensor = self.linear(x) + self.lora(x)
        return y

    def merged(self) -> nn.Linear | Conv1D:
        """The weight form: a plain layer of the same kind that holds W + ΔW. It costs what the base layer costs."""
        delta = self.lora.delta_weight()  # [out, in]
        plain = copy.deepcopy(self.linear)
        with torch.no_grad():
            plain.weight += delta if isinstance(plain, nn.Linear) else delta.T
        return plain


def features(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """(in, out) of a layer, from the shape of its weight in the order of its kind."""
    rows, columns = linear.weight.shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def main() -> None:
    """Wrap GPT-2's query-key-value layer, which is a Conv1D."""
    torch.manual_seed(0)
    x = torch.randn(4, 768, dtype=torch.float64)
    c_attn = Conv1D(3 * 768, 768).double()
    print("c_attn's weight is stored as", list(c_attn.weight.shape), "for (in, out) =", features(c_attn))

    layer = LinearWithLoRA(c_attn, rank=8, alpha=16)
    print("trains:", ", ".join(f"{name} {list(p.shape)}" for name, p in layer.named_parameters() if p.requires_grad))
    print("equal to the frozen layer before training, to the bit:", torch.equal(layer(x), c_attn(x)))

    nn.init.normal_(layer.lora.B)  # as if it had been trained
    print("still equal after B has moved:", torch.equal(layer(x), c_attn(x)))
    print("equal to its merged layer:", torch.allclose(layer(x), layer.merged()(x)))


if __name__ == "__main__":
    main()
