"""Other starts of a pair than A random and B zero: PiSSA, and orthogonal factors.

**PiSSA** (Meng et al. 2024, arXiv:2404.02948) begins with the principal part of the weight, W ≈ U S Vᵀ of rank r, which
then trains, instead of with noise:

    s A0 B0 = the best approximation of rank r:    A0 = (S/s)^½ Vᵀ [r, in],    B0 = U (S/s)^½ [out, r]

In the paper and in PEFT the frozen weight becomes the rest, W - s B0 A0. Here no frozen weight changes: A0 and B0 stay
beside the pair, and the layer computes W x + s (B A - B0 A0) x, the same function with the same gradients. So adapters
can be switched, and a file is an ordinary LoRA of rank 2r (A on A0, B beside -B0, alpha such that s stays). The
trade-off: it learns faster than LoRA from the first step, for a decomposition of each weight to begin with and a pair
that is twice as wide to compute. `pissa` decomposes exactly, `pissa_niter_4` nearly, by a random projection with 4
power iterations.
Dropout is of the whole update here, so that the layer begins as its base in training too; in PEFT, of B A alone.

**Orthogonal** (as PEFT has it): with Q [r, r] orthogonal, X and Y random,

    A = Q[odd]ᵀ X / 10        B = Y Q[even] / 10

so B A = Y Q[even] Q[odd]ᵀ X / 100 is zero, to rounding, while neither factor is: both have gradients from the first
step on. The rank must be even.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tsugiki.lora.layer import LowRank


@torch.no_grad()
def init_orthogonal_(pair: "LowRank") -> None:
    """A and B at right angles, such that B A is zero to rounding."""
    A, B = pair.A, pair.B
    r = len(A)
    q, _ = torch.linalg.qr(torch.randn(r, r, dtype=A.dtype, device=A.device))
    x = torch.randn(A.shape[1], r // 2, dtype=A.dtype, device=A.device)
    y = torch.randn(r // 2, len(B), dtype=B.dtype, device=B.device)
    A.copy_((x @ q[0::2]).T / 10)
    B.copy_(y.T @ q[1::2] / 10)


@torch.no_grad()
def init_pissa_(pair: "LowRank", weight: Tensor, how: str) -> None:
    """A and B as the principal part of a weight [out, in], kept as A0 and B0 too.

    Args:
        pair: of a rank that the weight has.
        weight: the frozen one.
        how: "pissa", or "pissa_niter_" and a number of iterations.
    """
    weight, r = weight.to(pair.A.dtype), len(pair.A)
    if how == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, r, niter=int(how.rpartition("_")[2]))
        vh = v.T
    root = (s[:r] / pair.scaling).sqrt()
    pair.A.copy_(root[:, None] * vh[:r])
    pair.B.copy_(u[:, :r] * root)
    pair.A0, pair.B0 = pair.A.detach().clone(), pair.B.detach().clone()
