"""Does an adapter do anything? A look at the logits with it and without."""

from torch import nn

from tsugiki.base.inference import probe_logits
from tsugiki.lora.graft import disable_adapter


def logit_shift(model: nn.Module) -> float | None:
    """The largest change of a probe logit that the active adapter makes; 0.0 is an adapter that does nothing."""
    with_adapter = probe_logits(model)
    if with_adapter is None:
        return None
    with disable_adapter(model):
        without = probe_logits(model)
    assert without is not None
    return float((with_adapter - without).abs().max())
