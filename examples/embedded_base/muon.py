"""Muon (K. Jordan et al. 2024) for the matrices inside the layers, and AdamW for all other parameters.

Muon updates a matrix with the momentum M of its gradient G, made nearly orthogonal:

    M <- 0.95 M + 0.05 G        N = 0.05 G + 0.95 M        W <- (1 - rate · decay) W - 0.2 √max(out, in) · rate · O(N)

O(N) has N's singular vectors, and singular values near 1: each of five Newton-Schulz iterations maps a singular value s
to a s + b s³ + c s⁵. The factor 0.2 √max(out, in) gives an update the size of AdamW's, so both have the same learning
rate. This is `torch.optim.Muon` with `match_rms_adamw`, to the bit where the processor multiplies bfloat16. torch
iterates in bfloat16 on all others as well, where it takes about 20 times as long as in float32.

An iteration is X <- P X with P = a I + b G + c G² and G = X Xᵀ. P and G commute, so the next G is P G P. In float32, a
matrix with a side at least twice the other one is multiplied only by the product of all five P: the iterations then
have the size of the short side.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools.processes import run_in_threads

_MOMENTUM = 0.95
_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
_PARTS = 8  # the matrices are divided among this many optimisers, which step in parallel


def muon_and_adamw(model: PreTrainedModel, config: RunConfig, rate: float) -> "CombinedOptimizer":
    """Return the optimiser for all trained parameters."""
    matrices, others = split_parameters(model)
    decay = config.weight_decay
    muons: list[torch.optim.Optimizer] = [
        Muon(matrices[first::_PARTS], {"lr": rate, "weight_decay": decay})
        for first in range(min(_PARTS, len(matrices)))
    ]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    return CombinedOptimizer([*muons, torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.adam_beta2))])


def plain_orthogonalized(matrix: Tensor) -> Tensor:
    """Return the matrix with singular values near 1, in bfloat16 if its device multiplies bfloat16, else in float32."""
    x = _normalized(matrix)
    for _iteration in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if matrix.size(0) > matrix.size(1) else x


def orthogonalized(matrix: Tensor) -> Tensor:
    """Compute `plain_orthogonalized`, with less work for some float32 matrices.

    If the longer side is at least twice the shorter one, the iteration computes with the Gram matrix, which is smaller.
    The result is then rounded differently.
    """
    if _dtype(matrix) != torch.float32 or max(matrix.shape) < 2 * min(matrix.shape):
        return plain_orthogonalized(matrix)
    x = _normalized(matrix)
    gram = x @ x.T
    factors = factor = _factor(gram)
    for _iteration in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        factors = factor @ factors
    return (factors @ x).T if matrix.size(0) > matrix.size(1) else factors @ x


def _factor(gram: Tensor) -> Tensor:
    """Return a I + b G + c G²."""
    factor = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
    factor.diagonal().add_(_A)
    return factor


def _dtype(matrix: Tensor) -> torch.dtype:
    return torch.bfloat16 if preferred_compute_dtype(matrix.device) == "bf16" else torch.float32


def _normalized(matrix: Tensor) -> Tensor:
    """Return the matrix, transposed if it is tall, divided by its norm, so that no singular value is above 1."""
    x = (matrix.T if matrix.size(0) > matrix.size(1) else matrix).to(_dtype(matrix))
    return x.div(x.norm().clamp(min=1e-7))


def split_parameters(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trained matrices inside the layers, and all other trained parameters (embeddings, head, norms, …)."""
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in outside]
    return matrices, [p for p in trained if not any(p is matrix for matrix in matrices)]


class Muon(torch.optim.Optimizer):
    """The optimiser of matrices. Its state has the names of torch's."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                update = orthogonalized(matrix.grad.lerp(momentum, _MOMENTUM))
                matrix.mul_(1 - rate * decay)
                matrix.add_(update, alpha=-rate * (0.2 * math.sqrt(max(matrix.shape))))


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers with the interface of one: it has all of their parameter groups."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let every optimiser take a step, in parallel."""
        list(run_in_threads([partial(optimizer.step) for optimizer in self.optimizers]))
