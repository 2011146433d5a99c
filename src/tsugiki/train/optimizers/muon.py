"""Muon for the matrices inside the layers, AdamW for the rest, as one optimiser.

Muon (K. Jordan et al. 2024) makes each update of a matrix nearly orthogonal. torch has it, for matrices alone; its
updates are scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.train.config import RunConfig
from tsugiki.train.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARES = 8  # optimisers that the matrices are dealt out to, to step side by side


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers that step as one: their groups in a row, one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each take its step."""
        run_in_threads([partial(part.step) for part in self.parts])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over groups and state, and hand them on."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Each part works on its own groups of ours, and on its own parameters in our state."""
        first = 0
        for part in self.parts:
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            part.state = self.state
            first += len(part.param_groups)


def muon(model: "PreTrainedModel", config: RunConfig) -> CombinedOptimizer:
    """The optimiser of every parameter that trains.

    Raises:
        TsugikiError: this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise TsugikiError(f"optimizer muon needs torch 2.9 or later, this is {torch.__version__}; take adamw")
    matrices, others = split_parameters(model)
    rate, decay = config.learning_rate, config.weight_decay
    parts: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices[share::_SHARES], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        for share in range(min(_SHARES, len(matrices)))
    ]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.adam_beta2))
    return CombinedOptimizer([*parts, adamw])


def split_parameters(model: "PreTrainedModel") -> tuple[list[Tensor], list[Tensor]]:
    """What trains: the matrices inside the layers, and the rest (embeddings, head, biases, norms)."""
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in outside]
    return matrices, [p for p in trained if not any(p is matrix for matrix in matrices)]
