"""Switch the fast paths of a model on and off.

Each fast path is tried on the model first, and is used only if the results stay the same to rounding. A path that does
not fit is skipped without an error, because the model then computes the same, only slower.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel
from tsugiki.fast.attention import NAME, register
from tsugiki.fast.document_masks import FLASH, keeps_apart_by_flash
from tsugiki.fast.forward import enable_chunked_loss
from tsugiki.fast.layers import use_fast_products
from tsugiki.fast.modules import use_fused_modules
from tsugiki.lora.hold import base_alone, is_grafted, is_merged
from tsugiki.model.context import max_positions, possible_windows, virtual_tokens
from tsugiki.model.freeze import use_own_functions, warn_of_float16
from tsugiki.model.inference import evaluating, last_hidden_states, on_first_blocks, probe_ids, same_to_rounding
from tsugiki.model.undo import Undo, undo_all

_TOKENS = 96
_LONGEST_WINDOW = 512
_UNDO = "_tsugiki_fast_paths"
"""The attribute of a model with the functions that undo `use_fast_paths`."""


def use_fast_paths(model: PreTrainedModel, *, attention: bool = True, modules: bool = True, loss: bool = True) -> None:
    """Let the model compute the same results faster, in place; `use_plain_paths` undoes it.

    This is all that changes in the model: its implementations of attention and of experts; the `forward` of
    activations, feed-forward networks and RMSNorm; and the model's own `forward`, for its loss. What undoes this is
    kept in the attribute `_tsugiki_fast_paths`. Attention masks of a model with block attention get an attribute
    `_tsugiki_blocks`. Grafted layers compute fast before and afterwards, since `graft` has replaced their `forward`
    (see `fast.layers`).

    Args:
        model: a causal language model, grafted or not. Of an encoder-decoder model, only modules are replaced.
        attention: on a processor, compute attention in blocks (see `fast.attention`). On a GPU, use flash attention
            if it is installed (the package flash-attn) and the weights have 16 bits; otherwise torch's own attention.
        modules: fuse activations, gated feed-forward networks and RMSNorm (see `fast.modules`), and give experts even
            numbers of rows on a processor (see `fast.experts`).
        loss: compute the loss of `model(…, labels=…)` without whole logits (see `fast.forward`).
    """
    if is_grafted(model):
        use_fast_products(model)
    else:  # otherwise `graft` has warned already
        warn_of_float16(model)
    undo: list[Undo] = vars(model).setdefault(_UNDO, [])
    use_own_functions(model, undo)
    decoder_only = not getattr(model.config, "is_encoder_decoder", False)
    if attention and decoder_only and model.config._attn_implementation not in (NAME, FLASH):
        if model.device.type == "cpu":
            _use_block_attention(model, undo)
        elif model.device.type == "cuda":
            _use_flash_attention(model, undo)
    if modules:
        use_fused_modules(model, undo)
        use_even_rows(model, undo)
    if loss and decoder_only:
        # An untrained soft prompt causes more rounding error than a wrong head, so the base is probed without it.
        with nullcontext() if is_merged(model) else base_alone(model):
            enable_chunked_loss(model, undo)


def use_plain_paths(model: PreTrainedModel) -> None:
    """Undo `use_fast_paths`."""
    undo_all(vars(model).pop(_UNDO, []))


def _use_block_attention(model: PreTrainedModel, undo: list[Undo]) -> None:
    register()
    # An untrained soft prompt causes more rounding error than the difference that a wrong attention makes.
    with nullcontext() if is_merged(model) else base_alone(model):
        expected = _probe(model)
        _use_attention(model, NAME, lambda: same_to_rounding(_probe(model), expected), undo)


def _use_flash_attention(model: PreTrainedModel, undo: list[Undo]) -> None:
    """Use flash attention if it is installed. It takes no masks, so packed rows need none, but a soft prompt does."""
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available() and model.dtype.itemsize == 2 and not virtual_tokens(model):
        _use_attention(model, FLASH, lambda: keeps_apart_by_flash(model), undo)


def _use_attention(model: PreTrainedModel, name: str, is_right: Callable[[], bool], undo: list[Undo]) -> None:
    """Let the model use the attention that transformers knows by this name, if it is right in a trial."""
    former = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
        fits = is_right()
    except Exception:  # the architecture or the card does not support it; their code may raise anything
        fits = False
    if fits:
        undo.append(partial(model.set_attn_implementation, former))
    else:
        model.set_attn_implementation(former)


@on_first_blocks
def _probe(model: PreTrainedModel) -> Tensor:
    """Return the last hidden states of one fixed row, in evaluation mode. The row is longer than a short window."""
    windows = [window for window in possible_windows(model) if window <= _LONGEST_WINDOW]
    tokens = max([_TOKENS, *(window + window // 4 for window in windows)])
    ids = probe_ids(model, min(tokens, max_positions(model) or tokens))
    with evaluating(model):
        return last_hidden_states(model, {"input_ids": ids})


_NAME, _PLAIN = "tsugiki", "grouped_mm"  # in transformers' table of implementations
_ROWS, _MANY_ROWS = 8, 64
"""Up to 64 rows are filled up to a multiple of 8, up to 128 to one of 16, up to 256 to one of 32, and so on. So there
are few different numbers of rows, and few rows are added."""
_FEWEST_TOKENS = 32  # with fewer, as while text is generated, there are few numbers of rows


def use_even_rows(model: PreTrainedModel, undo: list[Undo]) -> None:
    """Let the experts of a model on a processor compute by `experts_forward`, in place.

    In 16 bits, oneDNN compiles a kernel for each number of rows, and keeps up to 1,024. The rows that a router sends to
    an expert differ in every step, so memory grew with the steps. Tokens of zeros, with weight 0 and whose results are
    dropped, fill up the rows of each expert to a multiple of eight, and transformers' own function computes.
    """
    if model.device.type == "cpu" and getattr(model.config, "_experts_implementation", None) == _PLAIN:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(_NAME, experts_forward)
        undo.append(partial(model.set_experts_implementation, _PLAIN))
        model.set_experts_implementation(_NAME)


def experts_forward(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute transformers' experts for `hidden`, [tokens, width], with even numbers of rows.

    Token t has the experts chosen[t] with the weights weights[t], [tokens, experts of a token].
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    tokens, of_token = chosen.shape
    if tokens >= _FEWEST_TOKENS and hidden.device.type == "cpu" and hidden.dtype.itemsize == 2:
        counts = torch.bincount(chosen.flatten(), minlength=experts.num_experts)
        missing = -counts % (_ROWS * 2 ** ((counts - 1) // _MANY_ROWS).float().frexp().exponent)
        filling = torch.arange(len(missing)).repeat_interleave(missing)
        filling = F.pad(filling, (0, -len(filling) % of_token)).view(-1, of_token)
        more = (0, 0, 0, len(filling))
        hidden, chosen, weights = F.pad(hidden, more), torch.cat([chosen, filling]), F.pad(weights, more)
    computed: Tensor = grouped_mm_experts_forward(experts, hidden, chosen, weights)
    return computed[:tokens]
