"""The fast paths of a model, put in and taken out.

Which of them fit is found out by trying: the model's logits must stay what they were. What does not fit is left as it
is, without an error, since it changes no result.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from tsugiki.base.inference import evaluating, probe_ids, same_to_rounding
from tsugiki.fast.attention import NAME, register
from tsugiki.fast.forward import disable_chunked_loss, enable_chunked_loss
from tsugiki.fast.modules import restore_modules, use_fused_modules
from tsugiki.lora.graft import base_alone, is_merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 96
_BEFORE = "_tsugiki_attention"
_SPED_UP = "_tsugiki_sped_up"


def use_fast_paths(
    model: "PreTrainedModel", *, attention: bool = True, modules: bool = True, loss: bool = True
) -> None:
    """Let the model compute the same more quickly, in place; `use_plain_paths` undoes it.

    Args:
        model: a causal language model, grafted or not.
        attention: in blocks (see `fast.attention`).
        modules: activations, gated feed-forward parts and RMSNorm (see `fast.modules`).
        loss: of `model(…, labels=…)`, without whole logits (see `fast.forward`).
    """
    if attention and not hasattr(model, _BEFORE):
        _use_block_attention(model)
    if modules:
        setattr(model, _SPED_UP, [*getattr(model, _SPED_UP, []), *use_fused_modules(model)])
    if loss:
        enable_chunked_loss(model)


def use_plain_paths(model: "PreTrainedModel") -> None:
    """Bring back what `use_fast_paths` replaced."""
    if hasattr(model, _BEFORE):
        model.set_attn_implementation(getattr(model, _BEFORE))
        delattr(model, _BEFORE)
    restore_modules(vars(model).pop(_SPED_UP, []))
    disable_chunked_loss(model)


def _use_block_attention(model: "PreTrainedModel") -> None:
    register()
    before = model.config._attn_implementation
    # An untrained soft prompt makes more noise than what tells one kind of attention from another.
    with nullcontext() if is_merged(model) else base_alone(model):
        wanted = _logits(model)
        try:
            model.set_attn_implementation(NAME)
            fits = same_to_rounding(_logits(model), wanted)
        except (ValueError, RuntimeError, TypeError, KeyError):  # an architecture with attention of its own
            fits = False
    if fits:
        setattr(model, _BEFORE, before)
    else:
        model.set_attn_implementation(before)


def _logits(model: "PreTrainedModel") -> Tensor:
    """Return the logits of one fixed row in evaluation mode."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS
    with evaluating(model):
        logits: Tensor = model(input_ids=probe_ids(model, min(_TOKENS, context)), use_cache=False).logits
    return logits
