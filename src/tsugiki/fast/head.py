"""The head of a language model: the function from its last hidden states to its logits.

Logits are those of the output layer, which some models scale (Cohere, Granite) or cap (Gemma 2: cap · tanh(z / cap)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.model.inference import evaluating, on_first_blocks, probe_ids, same_to_rounding
from tsugiki.model.linear import has_product, is_hooked
from tsugiki.model.undo import base_of

_PROBE_GAIN = 64  # factor on the head's input in a probe; a cap makes a difference for large logits only


@dataclass(frozen=True)
class Head:
    """The function from a model's last hidden states to its logits: cap(scale · layer(hidden))."""

    layer: nn.Module
    """The output layer, possibly grafted."""
    scale: float = 1.0
    """The factor on the layer's output."""
    softcap: float | None = None
    """The logits become softcap · tanh(logits / softcap); None: no cap."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocabulary] for hidden states [..., width]."""
        logits: Tensor = self.layer(hidden) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@on_first_blocks
def find_head(model: PreTrainedModel) -> Head | None:
    """Find the head that gives the model's logits, by trying the scales and caps that its config may mean.

    None if no candidate gives the model's logits, or if the model adds another loss to the cross-entropy (a mixture of
    experts with router logits).
    """
    layer = model.get_output_embeddings()
    plain = None if layer is None else base_of(layer)
    config = model.config.get_text_config()
    if (
        plain is None
        or not has_chunks(plain)
        or model.base_model is model
        or getattr(config, "output_router_logits", False)
    ):
        return None
    softcap = getattr(config, "final_logit_softcapping", None)
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    scales = [*([float(factor)] if factor else []), *([1 / float(divisor)] if divisor else []), 1.0]
    caps = [float(softcap), None] if softcap else [None]
    ids = probe_ids(model)
    with evaluating(model):
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if hidden is None:
            return None
        amplify = layer.register_forward_pre_hook(lambda module, given: (given[0] * _PROBE_GAIN,))
        try:
            logits = model(input_ids=ids, use_cache=False).logits
            heads = [Head(layer, scale, cap) for scale in scales for cap in caps]  # those with most settings first
            return next((head for head in heads if _gives(head, hidden, logits)), None)
        finally:
            amplify.remove()


def _gives(head: Head, hidden: Tensor, logits: Tensor) -> bool:
    """Return whether this head gives these logits, to rounding, for these hidden states."""
    try:
        return same_to_rounding(head.logits(hidden), logits)
    except RuntimeError:  # the model projects the hidden states to another width before the head
        return False


def has_chunks(layer: nn.Module) -> bool:
    """Return whether `fast.loss` can compute with the layer: `has_product`, or an `nn.Linear` with any weight."""
    return has_product(layer) or (type(layer) is nn.Linear and not is_hooked(layer))
