"""LoRA+: AdamW whose learning rate for B is a multiple of that for A (Hayou et al. 2024, arXiv:2402.12354).

A [r, in] begins random and B [out, r] at zero, and what each has to move differs with the width: with one rate for
both, wide layers learn too slowly or not stably. About 16 is the paper's ratio. The pairs, and the file, are LoRA's.
The trade-off: one more number to choose, and a rate of B that is soon too high; begin with half the `learning_rate`.

As in PEFT, whatever has one axis (biases, DoRA's magnitudes) learns at B's rate. An embedding's pair, where A begins at
zero, learns at the run's own rate (in PEFT at a fixed 1e-6).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsugiki.lora.layer import LoraEmbedding, grafted_layers
from tsugiki.train.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loraplus(model: "PreTrainedModel", config: RunConfig) -> torch.optim.AdamW:
    """The optimiser of every parameter that trains."""
    rate, decay = config.learning_rate, config.weight_decay
    quick = {
        id(layer.lora.B)
        for layer in grafted_layers(model).values()
        if layer.lora is not None and not isinstance(layer, LoraEmbedding)
    }
    slow: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            (vectors if p.ndim == 1 else matrices if id(p) in quick else slow).append(p)
    groups = [
        {"params": slow, "lr": rate, "weight_decay": decay},
        {"params": matrices, "lr": rate * config.loraplus_lr_ratio, "weight_decay": decay},
        {"params": vectors, "lr": rate * config.loraplus_lr_ratio, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, config.adam_beta2))
