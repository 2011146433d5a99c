"""Causal attention as plain products over blocks of queries, each against only the keys that it may see.

    for each block of queries:   S = scale · Q K[lo:hi]ᵀ      P = softmax(S)      O = P V[lo:hi]

`lo` is the first key that any query of the block sees, `hi` the end of the block: what lies above the diagonal, before
a sliding window, or in another document of a packed row is never computed, so that a document costs attention of its
own length, not of the row's. Keys that stand before the queries and that all of them see (a cache's) join each block.
Queries that share a key head (grouped-query attention) are rows of one product.
P is kept for the backward pass: dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum), dQ = scale · dS K, dK = scale · dSᵀ Q.

On a processor this takes less time than torch's fused kernel, in bfloat16 half of it, since that computes in float32.
The definition is `plain_attention`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.activations import eager_on_cpu

NAME = "tsugiki"
"""As transformers' `attn_implementation`."""

_BLOCK = 128  # queries: large enough for efficient products, small enough to leave out most of what is masked
_MASKED = -1e4  # added to a score, leaves nothing of it
_SHORT = 64  # a row of fewer tokens is one block in any case


def register() -> None:
    """Make the attention known to transformers under `NAME`, with boolean masks as its fused attention takes them."""
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
    """Attention as transformers calls it; the plain definition wherever the blocks do not apply.

    Args:
        module: the attention layer (transformers hands it over).
        query: [batch, heads, length, width].
        key: [batch, key heads, keys, width]; heads are a multiple of key heads.
        value: [batch, key heads, keys, value width].
        attention_mask: [batch or 1, 1, length, keys], True or 0 where a query sees a key; None: all are seen.
        dropout: on the probabilities.
        scaling: of the scores; 1 / sqrt(width) by default.
        softcap: scores go through softcap · tanh(score / softcap).

    Returns:
        [batch, length, heads, value width], and None for the probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spans = None
    lengths = _SHORT < query.shape[2] <= key.shape[2]
    if not dropout and softcap is None and lengths and eager_on_cpu(query, key, value):
        spans = _known_spans(attention_mask)
    if spans is None:
        return plain_attention(query, key, value, attention_mask, scale, softcap, dropout).transpose(1, 2), None
    seen: Tensor = _BlockAttention.apply(query, key, value, scale, spans)  # type: ignore[no-untyped-call]
    return seen.transpose(1, 2), None


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale · Q Kᵀ) V with a mask, in words that anyone can read; shapes as in `attention_forward`.

    Returns:
        [batch, heads, length, value width].
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
    """The first key that each query sees, [batch or 1, length], where it sees all from there to itself and no other.

    Where there are more keys than queries, the first ones stand before the queries, are not counted, and all see them.
    None where the mask is of another kind (such as padding on the left, or attention to what follows).
    """
    if mask is None or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] > mask.shape[3]:
        return None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask <= _MASKED)).all()):
        return None  # scores are shifted, not hidden
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    before = mask.shape[3] - mask.shape[2]
    if not seen[..., :before].all():
        return None
    seen, places = seen[..., before:], torch.arange(mask.shape[2])
    first = places + 1 - seen.sum(-1)
    span = (places >= first[..., None]) & (places <= places[:, None])
    return first if torch.equal(seen, span) and bool((first <= places).all()) else None


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: the dtype's lowest number where `hidden`, 0 elsewhere."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


def _known_spans(mask: Tensor | None) -> Tensor | None:
    """`causal_spans`, worked out once for all layers that are given this mask."""
    if mask is None:
        return None
    if not hasattr(mask, "_tsugiki_spans"):
        mask._tsugiki_spans = causal_spans(mask)  # type: ignore[attr-defined]
    return mask._tsugiki_spans  # type: ignore[attr-defined, no-any-return]


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, first: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        q, k, v = _by_key_head(query, key) * scale, key.flatten(0, 1).contiguous(), value.flatten(0, 1).contiguous()
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        before = key.shape[2] - length
        kept = []
        for start, end, low in _blocks(first):
            block = q[:, :, start:end].flatten(1, 2)
            scores = block @ _seen(k, before, low, end).transpose(1, 2)
            of_row = scores.view(batch, heads, end - start, before + end - low)
            _apply_mask(of_row[..., before:], first[:, start:end], start, low)
            probabilities = torch.softmax(scores, -1)
            out[:, :, start:end] = (probabilities @ _seen(v, before, low, end)).view(
                *q.shape[:2], end - start, v.shape[-1]
            )
            if any(ctx.needs_input_grad):
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
        before = k.shape[1] - q.shape[2]
        for (start, end, low), probabilities in zip(_blocks(first), kept, strict=True):
            d_block = d_out[:, :, start:end].flatten(1, 2)
            block = q[:, :, start:end].flatten(1, 2)
            _add_seen(dv, before, low, end, probabilities.transpose(1, 2) @ d_block)
            d_scores = d_block @ _seen(v, before, low, end).transpose(1, 2)
            d_scores = torch._softmax_backward_data(d_scores, probabilities, -1, q.dtype)
            seen = _seen(k, before, low, end)
            dq[:, :, start:end] = (d_scores @ seen).view(*q.shape[:2], end - start, k.shape[-1])
            _add_seen(dk, before, low, end, d_scores.transpose(1, 2) @ block)
        dq *= ctx.scale
        return dq.view(ctx.shapes[0]), dk.view(ctx.shapes[1]), dv.view(ctx.shapes[2]), None, None


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """[batch · key heads, queries of a key head, length, width]."""
    batch, heads, length, width = query.shape
    return query.reshape(batch * key.shape[1], heads // key.shape[1], length, width)


def _blocks(first: Tensor) -> list[tuple[int, int, int]]:
    """The first query of each block, the one after its last, and the first key that any of them sees."""
    length = first.shape[-1]
    starts = range(0, length, _BLOCK)
    lows = [int(first[:, start : start + _BLOCK].min()) for start in starts]
    return [(start, min(start + _BLOCK, length), low) for start, low in zip(starts, lows, strict=True)]


def _seen(keys: Tensor, before: int, low: int, end: int) -> Tensor:
    """Of keys or values [heads, before + length, width], those before all queries and those from `low` to `end`."""
    if not before or not low:
        return keys[:, low : before + end]
    return torch.cat([keys[:, :before], keys[:, before + low : before + end]], dim=1)


def _add_seen(sums: Tensor, before: int, low: int, end: int, gradient: Tensor) -> None:
    """Add the gradient of what `_seen` gives to that of all."""
    sums[:, :before] += gradient[:, :before]
    sums[:, before + low : before + end] += gradient[:, before:]


def _apply_mask(scores: Tensor, first: Tensor, start: int, low: int) -> None:
    """Set scores [batch, heads, queries, keys from `low` on] that a query does not see to the lowest number."""
    places = torch.arange(scores.shape[-1]) + low
    # Where all see the block's first key, only what lies above the diagonal is hidden.
    at = start - low if bool((first == low).all()) else 0
    queries = torch.arange(start, start + scores.shape[-2])
    hidden = (places[at:] > queries[:, None]) | (places[at:] < first[..., None])
    scores[..., at:] += additive_mask(hidden, scores.dtype)[:, None]
