"""LoRA+: AdamW with a higher learning rate for B than for A (Hayou et al. 2024, arXiv:2402.12354).

A [r, in] is initialised at random and B [out, r] with zeros, and the sizes of the updates that they need depend on the
width of the layer in different ways. With one learning rate for both, wide layers learn too slowly or become unstable.
The paper recommends a ratio of about 16. The factors and the file are LoRA's.
The trade-off: there is one more hyperparameter, and B's learning rate is soon too high; start with half the usual
`learning_rate`.

As in PEFT, parameters with one axis (biases, DoRA's magnitudes) have B's learning rate. The factors of an embedding,
whose A is initialised with zeros, have the learning rate of the run (in PEFT, a fixed 1e-6).
"""

import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.lora.layer import LoraEmbedding, grafted_layers
from tsugiki.lora.pair import LowRank
from tsugiki.training.settings.config import RunConfig


def loraplus(model: PreTrainedModel, config: RunConfig, rate: float) -> torch.optim.AdamW:
    """Return the optimiser for all trained parameters; `rate` is the learning rate of A."""
    decay = config.weight_decay
    slow_embeddings = {
        layer.lora for layer in grafted_layers(model).values() if isinstance(layer, LoraEmbedding) and layer.lora
    }
    fast = {id(pair.B) for pair in model.modules() if isinstance(pair, LowRank) and pair not in slow_embeddings}
    slow: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            (vectors if p.ndim == 1 else matrices if id(p) in fast else slow).append(p)
    groups = [
        {"params": slow, "lr": rate, "weight_decay": decay},
        {"params": matrices, "lr": rate * config.loraplus_lr_ratio, "weight_decay": decay},
        {"params": vectors, "lr": rate * config.loraplus_lr_ratio, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, config.adam_beta2))
