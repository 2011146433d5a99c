"""First step: one frozen weight W, and a low-rank update of it in two forms.

    weight form   y = (W + s · B A) x        build the changed weight, then multiply
    branch form   y = W x + s · B (A x)      leave the weight alone, add a narrow path beside it

    W [out, in] is frozen.   A [rank, in] and B [out, rank] train.   s = alpha / rank.

Both give the same y. The branch form is what trains: B A, as large as W, is never built. The weight form is
what merging does afterwards: one matrix again, and nothing more to compute.

    python examples/from_scratch/lora.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALayer(nn.Module):
    """The pair A, B of one layer; called on x it gives the branch, s · B (A x).

    A starts random and B at zero, so the update B A is zero and the model starts as the one that was pretrained.
    Not both at zero: the gradient of each holds the other as a factor, and neither would ever move.

    Args:
        in_features: length of x.
        out_features: length of W x.
        rank: width of the narrow path; B A has at most this rank.
        alpha: strength of the update; s = alpha / rank, so that another rank does not ask for another alpha.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.scaling = alpha / rank
        bound = in_features**-0.5  # as nn.Linear starts its own weight
        nn.init.uniform_(self.A, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """The branch for x [..., in]: [..., out]."""
        narrow = x @ self.A.T  # [..., in] @ [in, rank] -> [..., rank]
        return self.scaling * (narrow @ self.B.T)  # [..., rank] @ [rank, out] -> [..., out]

    def delta_weight(self) -> Tensor:
        """The update as a matrix, ΔW = s · B A [out, in]."""
        return self.scaling * (self.B @ self.A)  # [out, rank] @ [rank, in]


def weight_form(x: Tensor, weight: Tensor, lora: LoRALayer) -> Tensor:
    """(W + ΔW) x for x [..., in] and W [out, in]: [..., out]."""
    return F.linear(x, weight + lora.delta_weight())


def branch_form(x: Tensor, weight: Tensor, lora: LoRALayer) -> Tensor:
    """W x + s · B (A x) for x [..., in] and W [out, in]: [..., out]."""
    y: Tensor = F.linear(x, weight) + lora(x)
    return y


def main() -> None:
    """Compare the two forms on one layer of GPT-2's width."""
    torch.manual_seed(0)
    x = torch.randn(4, 768, dtype=torch.float64)
    weight = torch.randn(768, 768, dtype=torch.float64)
    lora = LoRALayer(768, 768, rank=8, alpha=16).double()
    print("before training the branch adds nothing:", torch.equal(branch_form(x, weight, lora), F.linear(x, weight)))

    nn.init.normal_(lora.B)  # as if it had been trained
    same = torch.allclose(weight_form(x, weight, lora), branch_form(x, weight, lora))
    print("weight form and branch form agree:", same)
    pair = lora.A.numel() + lora.B.numel()
    print(f"W has {weight.numel():,} numbers, A and B have {pair:,} ({100 * pair / weight.numel():.1f} %)")


if __name__ == "__main__":
    main()
