"""Switch the fast paths of a model on and off.

Each fast path is tried on the model first, and is used only if the results stay the same to rounding. A path that does
not fit is skipped without an error, because the model then computes the same, only slower.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from tsugiki.fast.attention import NAME, register
from tsugiki.fast.document_masks import FLASH, keeps_apart_by_flash
from tsugiki.fast.forward import disable_chunked_loss, enable_chunked_loss
from tsugiki.fast.modules import restore_modules, use_fused_modules
from tsugiki.lora.graft import warn_of_float16
from tsugiki.lora.graft_state import is_grafted, is_merged
from tsugiki.lora.switch import base_alone
from tsugiki.model.context import max_positions, possible_windows, virtual_tokens
from tsugiki.model.inference import evaluating, last_hidden_states, on_first_blocks, probe_ids, same_to_rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 96
_LONGEST_WINDOW = 512
_FORMER_ATTENTION = "_tsugiki_attention"
_REPLACED_MODULES = "_tsugiki_replaced_modules"


def use_fast_paths(
    model: "PreTrainedModel", *, attention: bool = True, modules: bool = True, loss: bool = True
) -> None:
    """Let the model compute the same results faster, in place; `use_plain_paths` undoes it.

    This is all that changes in the model: its attention implementation, whose former name is kept in the attribute
    `_tsugiki_attention`; the `forward` of activations, feed-forward networks and RMSNorm, listed in
    `_tsugiki_replaced_modules`; and the model's own `forward`, for its loss. Attention masks of a model with block
    attention get an attribute `_tsugiki_spans`.

    Args:
        model: a causal language model, grafted or not. Of an encoder-decoder model, only modules are replaced.
        attention: on a processor, compute attention in blocks (see `fast.attention`). On a GPU, use flash attention
            if it is installed (the package flash-attn) and the weights have 16 bits; otherwise torch's own attention.
        modules: fuse activations, gated feed-forward networks and RMSNorm (see `fast.modules`).
        loss: compute the loss of `model(…, labels=…)` without whole logits (see `fast.forward`).
    """
    if not is_grafted(model):  # otherwise `graft` has warned already
        warn_of_float16(model)
    decoder_only = not getattr(model.config, "is_encoder_decoder", False)
    if attention and decoder_only and not hasattr(model, _FORMER_ATTENTION):
        if model.device.type == "cpu":
            _use_block_attention(model)
        elif model.device.type == "cuda" and _has_flash_attention():
            _use_flash_attention(model)
    if modules:
        setattr(model, _REPLACED_MODULES, [*getattr(model, _REPLACED_MODULES, []), *use_fused_modules(model)])
    if loss and decoder_only:
        # An untrained soft prompt causes more rounding error than a wrong head, so the base is probed without it.
        with nullcontext() if is_merged(model) else base_alone(model):
            enable_chunked_loss(model)


def use_plain_paths(model: "PreTrainedModel") -> None:
    """Undo `use_fast_paths`."""
    if hasattr(model, _FORMER_ATTENTION):
        model.set_attn_implementation(getattr(model, _FORMER_ATTENTION))
        delattr(model, _FORMER_ATTENTION)
    restore_modules(vars(model).pop(_REPLACED_MODULES, []))
    disable_chunked_loss(model)


def _use_block_attention(model: "PreTrainedModel") -> None:
    register()
    former = model.config._attn_implementation
    # An untrained soft prompt causes more rounding error than the difference that a wrong attention makes.
    with nullcontext() if is_merged(model) else base_alone(model):
        expected = _probe(model)
        try:
            model.set_attn_implementation(NAME)
            fits = same_to_rounding(_probe(model), expected)
        except (ValueError, RuntimeError, TypeError, KeyError):  # the architecture computes its attention itself
            fits = False
    if fits:
        setattr(model, _FORMER_ATTENTION, former)
    else:
        model.set_attn_implementation(former)


def _has_flash_attention() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def _use_flash_attention(model: "PreTrainedModel") -> None:
    """Use flash attention, which needs no masks for packed rows, unless the model must have masks for a soft prompt."""
    former = model.config._attn_implementation
    if model.dtype.itemsize != 2 or virtual_tokens(model):
        return
    try:
        model.set_attn_implementation(FLASH)
        fits = keeps_apart_by_flash(model)
    except Exception:  # the architecture or the card does not support it; their code may raise anything
        fits = False
    if fits:
        setattr(model, _FORMER_ATTENTION, former)
    else:
        model.set_attn_implementation(former)


@on_first_blocks
def _probe(model: "PreTrainedModel") -> Tensor:
    """Return the last hidden states of one fixed row, in evaluation mode. The row is longer than a short window."""
    windows = [window for window in possible_windows(model) if window <= _LONGEST_WINDOW]
    tokens = max([_TOKENS, *(window + window // 4 for window in windows)])
    ids = probe_ids(model, min(tokens, max_positions(model) or tokens))
    with evaluating(model):
        return last_hidden_states(model, {"input_ids": ids})
