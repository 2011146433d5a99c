"""Check whether an adapter has any effect, by comparing logits with and without it."""

from torch import nn

from tsugiki.lora.hold import disable_adapter
from tsugiki.model.inference import probe_logits


def logit_shift(model: nn.Module) -> float | None:
    """Return the largest change of a logit that the active adapter causes on a fixed input.

    0.0 means that the adapter has no effect; None that the model gives no logits.
    """
    with_adapter = probe_logits(model)
    if with_adapter is None:
        return None
    with disable_adapter(model):
        without = probe_logits(model)
    assert without is not None
    return float((with_adapter - without).abs().max())
