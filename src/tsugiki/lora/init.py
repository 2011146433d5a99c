"""Initial values of A and B other than A random and B zero: PiSSA and orthogonal factors.

**PiSSA** (Meng et al. 2024, arXiv:2404.02948) initialises the pair to the principal part of the weight, W ≈ U S Vᵀ of
rank r, instead of noise:

    s A0 B0 = the best approximation of rank r:    A0 = (S/s)^½ Vᵀ [r, in],    B0 = U (S/s)^½ [out, r]

In the paper and in PEFT, the frozen weight is replaced by the remainder, W - s B0 A0. Here no frozen weight changes: A0
and B0 are kept with the pair, and the layer computes W x + s (B A - B0 A0) x, the same function with the same
gradients. So adapters can be switched, and the file is an ordinary LoRA of rank 2r (A stacked on A0, B next to -B0, and
an alpha that keeps s). The trade-off: PiSSA learns faster than LoRA from the first step, but each weight must be
decomposed before training, and the pair is twice as wide to compute. `pissa` decomposes exactly, `pissa_niter_4`
approximately, by a random projection with 4 power iterations.
Dropout applies to the whole update here, so that the layer equals its base before the first step in training mode, too;
in PEFT it applies to B A alone.

**Orthogonal** (as in PEFT): with Q [r, r] orthogonal, X and Y random,

    A = Q[odd]ᵀ X / 10        B = Y Q[even] / 10

Then B A = Y Q[even] Q[odd]ᵀ X / 100 is zero up to rounding although neither factor is, so both have gradients from the
first step. The rank must be even.
"""

import math

import torch
from torch import nn

from tsugiki.lora.pair import LowRank


def init_random_(pair: LowRank, r: int, init: bool | str) -> None:
    """Initialise A at random and B with zeros (see `LoraConfig.init_lora_weights`).

    A may be a stack of the factors of several matrices of rank r, [experts · r, in].
    """
    if init == "gaussian":
        nn.init.normal_(pair.A, std=1 / r)
    else:
        nn.init.kaiming_uniform_(pair.A, a=math.sqrt(5))
    nn.init.zeros_(pair.B) if init else nn.init.kaiming_uniform_(pair.B, a=math.sqrt(5))


@torch.no_grad()
def init_orthogonal_(pair: LowRank) -> None:
    """Initialise A and B with orthogonal row and column spaces, so that B A is zero up to rounding."""
    A, B = pair.A, pair.B
    r = len(A)
    q, _ = torch.linalg.qr(torch.randn(r, r, dtype=A.dtype, device=A.device))
    x = torch.randn(A.shape[1], r // 2, dtype=A.dtype, device=A.device)
    y = torch.randn(r // 2, len(B), dtype=B.dtype, device=B.device)
    A.copy_((x @ q[0::2]).T / 10)
    B.copy_(y.T @ q[1::2] / 10)


@torch.no_grad()
def init_pissa_(pair: LowRank, weight: torch.Tensor, method: str) -> None:
    """Initialise A and B to the principal part of the frozen weight [out, in], and keep copies as A0 and B0.

    The method is "pissa", or "pissa_niter_" followed by a number of power iterations. The rank of the pair must not be
    above that of the weight.
    """
    weight, r = weight.to(pair.A.dtype), len(pair.A)
    if method == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, r, niter=int(method.rpartition("_")[2]))
        vh = v.T
    root = (s[:r] / pair.scaling).sqrt()
    pair.A.copy_(root[:, None] * vh[:r])
    pair.B.copy_(u[:, :r] * root)
    pair.A0, pair.B0 = (nn.Parameter(factor.detach().clone(), requires_grad=False) for factor in (pair.A, pair.B))
