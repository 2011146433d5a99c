"""Does an adapter do anything? A look at the logits with it and without."""

import torch
from torch import Tensor, nn

from tsugiki.lora.graft import disable_adapter

_TOKENS = 16


@torch.no_grad()
def probe_logits(model: nn.Module) -> Tensor | None:
    """Logits of `model`, in evaluation mode, on one fixed row of ids spread over its vocabulary.

    None for a model that takes no `input_ids` or gives no logits.
    """
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is None:
        return None
    device = next(model.parameters()).device
    ids = torch.linspace(0, vocabulary - 1, _TOKENS, device=device).long()[None]
    training = model.training
    model.eval()
    try:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        model.train(training)
    logits: Tensor | None = getattr(output, "logits", None)
    return logits


def logit_shift(model: nn.Module) -> float | None:
    """The largest change of a probe logit that the active adapter makes; 0.0 is an adapter that does nothing."""
    with_adapter = probe_logits(model)
    if with_adapter is None:
        return None
    with disable_adapter(model):
        without = probe_logits(model)
    assert without is not None
    return float((with_adapter - without).abs().max())
