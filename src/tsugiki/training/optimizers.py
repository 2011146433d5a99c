"""The optimisers of a run; LoRA+ is in `training.lora_plus`.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), without weight decay of biases and norms.

Muon (K. Jordan et al. 2024) makes the update of each matrix inside the layers nearly orthogonal; AdamW updates all
other parameters. torch provides Muon for matrices only. Its updates are scaled to the size of AdamW's
(`match_rms_adamw`), so both have the same learning rate.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.config import RunConfig
from tsugiki.training.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MUON_OPTIMIZERS = 8  # the matrices are divided among this many optimisers, which step in parallel


def adamw(model: "PreTrainedModel", config: RunConfig, rate: float) -> torch.optim.AdamW:
    """Return the optimiser for all trained parameters, with one group for those with weight decay and one without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.adam_beta2), fused=True)


def muon(model: "PreTrainedModel", config: RunConfig, rate: float) -> "CombinedOptimizer":
    """Return the optimiser for all trained parameters.

    Raises:
        TsugikiError: this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise TsugikiError(
            _("optimizer muon requires torch 2.9 or later, and this is {version}; use adamw").format(
                version=torch.__version__
            )
        )
    matrices, others = split_parameters(model)
    decay = config.weight_decay
    muons: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices[first::_MUON_OPTIMIZERS], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        for first in range(min(_MUON_OPTIMIZERS, len(matrices)))
    ]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    return CombinedOptimizer([*muons, torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.adam_beta2))])


def split_parameters(model: "PreTrainedModel") -> tuple[list[Tensor], list[Tensor]]:
    """Return the trained matrices inside the layers, and all other trained parameters (embeddings, head, norms, …)."""
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in outside]
    return matrices, [p for p in trained if not any(p is matrix for matrix in matrices)]


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers with the interface of one: it has all of their parameter groups and their state."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let every optimiser take a step, in parallel."""
        list(run_in_threads([partial(optimizer.step) for optimizer in self.optimizers]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load parameter groups and state, and pass them to the optimisers."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give each optimiser its parameter groups and the common state."""
        first = 0
        for optimizer in self.optimizers:
            optimizer.param_groups = self.param_groups[first : first + len(optimizer.param_groups)]
            optimizer.state = self.state
            first += len(optimizer.param_groups)
