"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), without weight decay of biases and norms."""

from typing import TYPE_CHECKING

import torch

from tsugiki.training.automatic import ResolvedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def adamw(model: "PreTrainedModel", config: ResolvedConfig) -> torch.optim.AdamW:
    """Return the optimiser for all trained parameters, with one group for those with weight decay and one without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=True)
