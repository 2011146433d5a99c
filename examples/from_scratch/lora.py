"""Step 1: one frozen weight W and its low-rank update, in two forms.

    weight form   y = (W + s · B A) x        add the update to the weight, then multiply
    branch form   y = W x + s · B (A x)      leave the weight unchanged and add a parallel low-rank branch

    W [out, in] is frozen.   A [rank, in] and B [out, rank] are trained.   s = alpha / rank.

Both forms give the same y. Training uses the branch form, which never builds the matrix B A of the size of W.
Merging uses the weight form after training: the result is one matrix and needs no extra computation.

    python examples/from_scratch/lora.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALayer(nn.Module):
    """The LoRA factors A and B of one layer. `forward` computes the branch s · B (A x).

    A is initialised at random and B with zeros, so the update B A is zero and the model starts as the pretrained one.
    They cannot both be zero: the gradient of each factor is a product with the other, so neither would ever change.

    Args:
        in_features: length of x.
        out_features: length of W x.
        rank: inner dimension of B A, which therefore has at most this rank.
        alpha: scale of the update. s = alpha / rank, so alpha need not change when the rank does.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.scaling = alpha / rank
        bound = in_features**-0.5  # the distribution of nn.Linear's initial weight
        nn.init.uniform_(self.A, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the branch s · B (A x) for x [..., in]; returns [..., out]."""
        narrow = x @ self.A.T  # [..., in] @ [in, rank] -> [..., rank]
        return self.scaling * (narrow @ self.B.T)  # [..., rank] @ [rank, out] -> [..., out]

    def delta_weight(self) -> Tensor:
        """Return the update as a matrix, ΔW = s · B A [out, in]."""
        return self.scaling * (self.B @ self.A)  # [out, rank] @ [rank, in]


def weight_form(x: Tensor, weight: Tensor, lora: LoRALayer) -> Tensor:
    """Compute (W + ΔW) x for x [..., in] and W [out, in]; returns [..., out]."""
    return F.linear(x, weight + lora.delta_weight())


def branch_form(x: Tensor, weight: Tensor, lora: LoRALayer) -> Tensor:
    """Compute W x + s · B (A x) for x [..., in] and W [out, in]; returns [..., out]."""
    y: Tensor = F.linear(x, weight) + lora(x)
    return y


def main() -> None:
    """Compare the two forms on one layer with the width of GPT-2 small."""
    torch.manual_seed(0)
    x = torch.randn(4, 768, dtype=torch.float64)
    weight = torch.randn(768, 768, dtype=torch.float64)
    lora = LoRALayer(768, 768, rank=8, alpha=16).double()
    print("the branch adds nothing before training:", torch.equal(branch_form(x, weight, lora), F.linear(x, weight)))

    nn.init.normal_(lora.B)  # stands for a trained B
    same = torch.allclose(weight_form(x, weight, lora), branch_form(x, weight, lora))
    print("weight form and branch form agree:", same)
    factors = lora.A.numel() + lora.B.numel()
    print(f"W has {weight.numel():,} elements, A and B have {factors:,} ({100 * factors / weight.numel():.1f} %)")


if __name__ == "__main__":
    main()
