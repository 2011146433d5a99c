"""Causal attention as plain products over blocks of queries, each with only the keys that it may see.

    for each block of queries:   S = scale · Q K[lo:hi]ᵀ      P = softmax(S)      O = P V[lo:hi]

`lo` is the first key that any query of the block sees, `hi` the end of the block. Keys above the diagonal, before a
sliding window or in another document of a packed row are not multiplied, so a document costs attention over its own
length, not over that of the row. Keys that precede the queries and that all queries see (from a cache) are added to
each block. Queries that share a key head (grouped-query attention) are rows of one product.
The backward pass needs P: dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum), dQ = scale · dS K, dK = scale · dSᵀ Q. P is kept for
queries that see few keys. In long documents it is computed again, block by block, because it would take memory that
grows with the square of their length.

On a processor this is faster than torch's fused kernel; in bfloat16 it takes half the time, because the kernel
computes in float32. `plain_attention` is the definition.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.activations import eager_on_cpu

NAME = "tsugiki"
"""The name of this attention as transformers' `attn_implementation`."""

_BLOCK = 128  # queries; large enough for efficient products, small enough to skip most of the masked keys
_KEPT_KEYS = 640  # P is kept if its queries see at most this many keys on average: whole rows of about 1,100 tokens
_MASKED = -1e4  # a mask value that is small enough to make a probability 0
_SHORT = 64  # the plain definition is used for rows of at most this many tokens


def register() -> None:
    """Register the attention in transformers under `NAME`, with the boolean masks of transformers' SDPA attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
        mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        return mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, whole_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention with transformers' signature, in blocks of queries or, where these do not apply, plainly.

    For a model that was moved to an accelerator after `use_fast_paths`, torch's own attention is used.

    Args:
        module: the attention layer; not used.
        query: [batch, heads, length, width].
        key: [batch, key heads, keys, width]; heads are a multiple of key heads.
        value: [batch, key heads, keys, value width].
        attention_mask: [batch or 1, 1, length, keys], True or 0 where a query sees a key; None: it sees all keys.
        dropout: the probability of dropping a probability.
        scaling: the factor on the scores; None: 1 / sqrt(width).
        softcap: the scores become softcap · tanh(score / softcap); None: no cap.

    Returns:
        The output [batch, length, heads, value width], and None in the place of the probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type != "cpu" and softcap is None:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale)
        return output.transpose(1, 2), None
    spans = None
    long_enough = _SHORT < query.shape[2] <= key.shape[2]
    if not dropout and softcap is None and long_enough and eager_on_cpu(query, key, value):
        spans = _known_spans(attention_mask)
    if spans is None:
        return plain_attention(query, key, value, attention_mask, scale, softcap, dropout).transpose(1, 2), None
    blocks: Tensor = _BlockAttention.apply(query, key, value, scale, spans)  # type: ignore[no-untyped-call]
    return blocks.transpose(1, 2), None


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute softmax(scale · Q Kᵀ) V with a mask, by the definition, as [batch, heads, length, value width].

    The arguments are those of `attention_forward`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    exact = at_least_float32(scores.dtype)
    probabilities = F.dropout(torch.softmax(scores, -1, dtype=exact).to(value.dtype), dropout)
    return probabilities @ value


def causal_spans(mask: Tensor | None) -> Tensor | None:
    """Return the first key that each query sees, if each query sees all keys from there up to itself, and no other.

    If there are more keys than queries, the additional ones precede the queries; every query must see them, and they
    are not counted. The mask is [batch or 1, 1, length, keys], as in `attention_forward`, and the result [batch or 1,
    length]; None for a mask of another kind (such as padding on the left, or attention to later tokens).
    """
    if mask is None or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] > mask.shape[3]:
        return None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask <= _MASKED)).all()):
        return None  # the mask changes scores without masking them
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    past = mask.shape[3] - mask.shape[2]
    if not visible[..., :past].all():
        return None
    visible, positions = visible[..., past:], torch.arange(mask.shape[2])
    first = positions + 1 - visible.sum(-1)
    span = (positions >= first[..., None]) & (positions <= positions[:, None])
    return first if torch.equal(visible, span) and bool((first <= positions).all()) else None


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: the dtype's lowest number where `hidden`, 0 elsewhere."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


def _known_spans(mask: Tensor | None) -> Tensor | None:
    """Return `causal_spans`, computed once for all layers that get this mask, and again if its values have changed.

    The values are compared with a copy: torch does not count the changes that are made through `.data` or NumPy.
    """
    if mask is None:
        return None
    copy, spans = getattr(mask, "_tsugiki_spans", (None, None))
    if copy is None or not torch.equal(mask, copy):
        spans = causal_spans(mask)
        mask._tsugiki_spans = mask.clone(), spans  # type: ignore[attr-defined]
    return spans


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, first: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        q, k, v = _by_key_head(query, key) * scale, key.flatten(0, 1).contiguous(), value.flatten(0, 1).contiguous()
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        past = key.shape[2] - length
        blocks, kept = _blocks(first), []
        seen = sum((end - start) * (past + end - low) for start, end, low in blocks)
        keeps = any(ctx.needs_input_grad) and seen <= _KEPT_KEYS * length
        for start, end, low in blocks:
            probabilities = _probabilities(q, k, first, start, end, low)
            out[:, :, start:end] = (probabilities @ _visible_keys(v, past, low, end)).view(
                *q.shape[:2], end - start, v.shape[-1]
            )
            if keeps:
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, first, *kept)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        return out.view(batch, heads, length, v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, first, *kept = ctx.saved_tensors
        d_out = d_out.reshape(*q.shape[:3], v.shape[-1])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        past = k.shape[1] - q.shape[2]
        for number, (start, end, low) in enumerate(_blocks(first)):
            probabilities = kept[number] if kept else _probabilities(q, k, first, start, end, low)
            d_block = d_out[:, :, start:end].flatten(1, 2)
            block = q[:, :, start:end].flatten(1, 2)
            _add_to_visible(dv, past, low, end, probabilities.transpose(1, 2) @ d_block)
            d_scores = d_block @ _visible_keys(v, past, low, end).transpose(1, 2)
            d_scores = torch._softmax_backward_data(d_scores, probabilities, -1, q.dtype)
            visible = _visible_keys(k, past, low, end)
            dq[:, :, start:end] = (d_scores @ visible).view(*q.shape[:2], end - start, k.shape[-1])
            _add_to_visible(dk, past, low, end, d_scores.transpose(1, 2) @ block)
        dq *= ctx.scale
        return dq.view(ctx.shapes[0]), dk.view(ctx.shapes[1]), dv.view(ctx.shapes[2]), None, None


def _probabilities(q: Tensor, k: Tensor, first: Tensor, start: int, end: int, low: int) -> Tensor:
    """Return P of a block, [batch · key heads, queries of a key head · queries, visible keys].

    The block has the scaled queries from `start` to `end` of q [batch · key heads, queries of a key head, length,
    width], and `low` is the first key that any of them sees in k [batch · key heads, past + length, width].
    """
    past = k.shape[1] - q.shape[2]
    scores = q[:, :, start:end].flatten(1, 2) @ _visible_keys(k, past, low, end).transpose(1, 2)
    rows = scores.view(len(first), -1, end - start, past + end - low)  # a row of `first` may stand for the whole batch
    _apply_mask(rows[..., past:], first[:, start:end], start, low)
    return torch.softmax(scores, -1)


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """Group the queries by their key head: [batch · key heads, queries of a key head, length, width]."""
    batch, heads, length, width = query.shape
    return query.reshape(batch * key.shape[1], heads // key.shape[1], length, width)


def _blocks(first: Tensor) -> list[tuple[int, int, int]]:
    """Return for each block its first query, the query after its last, and the first key that any of them sees.

    `first` is the first key that each query sees, [batch or 1, length].
    """
    length = first.shape[-1]
    starts = range(0, length, _BLOCK)
    lows = [int(first[:, start : start + _BLOCK].min()) for start in starts]
    return [(start, min(start + _BLOCK, length), low) for start, low in zip(starts, lows, strict=True)]


def _visible_keys(keys: Tensor, past: int, low: int, end: int) -> Tensor:
    """Return the keys (or values) that a block uses: all `past` ones before the queries, and those from `low` to `end`.

    The keys are [heads, past + length, width].
    """
    if not past or not low:
        return keys[:, low : past + end]
    return torch.cat([keys[:, :past], keys[:, past + low : past + end]], dim=1)


def _add_to_visible(sums: Tensor, past: int, low: int, end: int, gradient: Tensor) -> None:
    """Add the gradient of what `_visible_keys` returns to the gradient of all keys."""
    sums[:, :past] += gradient[:, :past]
    sums[:, past + low : past + end] += gradient[:, past:]


def _apply_mask(scores: Tensor, first: Tensor, start: int, low: int) -> None:
    """Mask the keys that a query of a block does not see, in place in the scores [batch, heads, queries, keys].

    The keys begin at `low`. The first query has the position `start`, and sees the keys from its entry in `first`
    [batch or 1, queries] on.
    """
    positions = torch.arange(scores.shape[-1]) + low
    # If every query sees the block's first key, only keys above the diagonal are hidden.
    at = start - low if bool((first == low).all()) else 0
    queries = torch.arange(start, start + scores.shape[-2])
    hidden = (positions[at:] > queries[:, None]) | (positions[at:] < first[..., None])
    scores[..., at:] += additive_mask(hidden, scores.dtype)[:, None]
