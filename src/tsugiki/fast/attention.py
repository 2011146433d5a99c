"""Causal attention as plain products over blocks of queries, each with only the keys that it may see.

    for each block of queries:   S = scale · Q K[seen]ᵀ      P = softmax(S)      O = P V[seen]

`seen` are the keys that any query of the block sees. Keys above the diagonal, before a sliding window, in another
document of a packed row or in the other answer to a prompt are not multiplied, so a document costs attention over its
own length, not over that of the row. Queries that share a key head (grouped-query attention) are rows of one product.
The backward pass needs P: dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum), dQ = scale · dS K, dK = scale · dSᵀ Q. P is kept for
queries that see few keys. In long documents it is computed again, block by block, because it would take memory that
grows with the square of their length.

On a processor this is faster than torch's fused kernel; in bfloat16 it takes half the time, because the kernel
computes in float32. Where the processor multiplies bfloat16, one call of a C function does all of this for a layer,
forward or backward. It has blocks of 32 queries and 32 keys, whose scores stay in the cache, and keeps no P: backward
computes it again. There is a function for the matrix unit AMX, and one for AVX-512, which processors without AMX use.
`plain_attention` is the definition.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.fast.activations import eager_on_cpu
from tsugiki.lowbit.threads import in_threads
from tsugiki.native import native_for

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
        The output [batch, length, heads, value width], contiguous because models view it in other shapes, and None in
        the place of the probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type != "cpu" and softcap is None:
        key, value = _for_each_query(query, key, value)
        output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale)
        return output.transpose(1, 2).contiguous(), None
    known = None
    long_enough = _SHORT < query.shape[2] <= key.shape[2]
    if not dropout and softcap is None and long_enough and eager_on_cpu(query, key, value):
        known = _known_blocks(attention_mask)
    if known is None:
        plain = plain_attention(query, key, value, attention_mask, scale, softcap, dropout)
        return plain.transpose(1, 2).contiguous(), None
    blocks, bits = known
    call = native_for("attention_amx", query) or native_for("attention", query)
    if call is not None and scale > 0 and _belong_together(query, key, value, bits):
        in_c: Tensor = _CAttention.apply(query, key, value, scale, bits, call)  # type: ignore[no-untyped-call]
        return in_c.transpose(1, 2).contiguous(), None
    in_blocks: Tensor = _BlockAttention.apply(query, key, value, scale, blocks)  # type: ignore[no-untyped-call]
    return in_blocks.transpose(1, 2).contiguous(), None


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
    key, value = _for_each_query(query, key, value)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    exact = at_least_float32(scores.dtype)
    probabilities = F.dropout(torch.softmax(scores, -1, dtype=exact).to(value.dtype), dropout)
    return probabilities @ value


def _for_each_query(query: Tensor, *shared: Tensor) -> list[Tensor]:
    """Repeat keys and values [batch, key heads, …] for the heads of the queries."""
    return [tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in shared]


@dataclass(frozen=True)
class Block:
    """Consecutive queries, and the keys that any of them sees."""

    queries: slice
    keys: list[slice]
    """Runs of consecutive keys, in order. There are several of them if keys between them are not seen."""
    seen_by_all: int
    """How many of these keys, from the first one on, all queries see."""
    hidden: Tensor
    """Which of the other ones a query does not see, bool [batch or 1, queries, others]."""

    @property
    def seen(self) -> int:
        """The number of keys."""
        return self.seen_by_all + self.hidden.shape[-1]


def causal_blocks(mask: Tensor | None) -> list[Block] | None:
    """Return the blocks of a mask in which each query sees its own key and no later ones; None for other masks.

    The mask is [batch or 1, 1, length, keys], as in `attention_forward`. If there are more keys than queries, the
    additional ones precede the queries.
    """
    if mask is None or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] > mask.shape[3]:
        return None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask <= _MASKED)).all()):
        return None  # the mask changes scores without masking them
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    past = mask.shape[3] - mask.shape[2]
    if not visible.diagonal(past, 1, 2).all() or visible.triu(past + 1).any():
        return None
    return [_block(visible, start) for start in range(0, mask.shape[2], _BLOCK)]


def _block(visible: Tensor, start: int) -> Block:
    """Return the block whose first query is `start`, given which keys each query sees, [batch or 1, length, keys]."""
    part = visible[:, start : start + _BLOCK]
    queries = part.flatten(0, 1)
    keys = queries.any(0).nonzero()[:, 0]
    runs = torch.tensor_split(keys, (keys.diff() > 1).nonzero()[:, 0] + 1)
    seen_by_all = int(queries.all(0)[keys].int().argmin())
    return Block(
        slice(start, start + part.shape[1]),
        [slice(int(run[0]), int(run[-1]) + 1) for run in runs],
        seen_by_all,
        ~part[..., keys[seen_by_all:]],
    )


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: the dtype's lowest number where `hidden`, 0 elsewhere."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


def _known_blocks(mask: Tensor | None) -> tuple[list[Block], Tensor] | None:
    """Return `causal_blocks` and `_bits`, computed once for all layers that get this mask, and again if it has changed.

    The values are compared with a copy: torch does not count the changes that are made through `.data` or NumPy.
    """
    if mask is None:
        return None
    copy, known = getattr(mask, "_tsugiki_blocks", (None, None))
    if copy is None or not torch.equal(mask, copy):
        blocks = causal_blocks(mask)
        known = None if blocks is None else (blocks, _bits(mask))
        mask._tsugiki_blocks = mask.clone(), known  # type: ignore[attr-defined]
    return known


def _belong_together(query: Tensor, key: Tensor, value: Tensor, bits: Tensor) -> bool:
    """Return whether the C function can read these tensors, which it does not check."""
    batch, heads, length, width = query.shape
    key_heads, keys = key.shape[1:3]
    return (
        key.shape == (batch, key_heads, keys, width)
        and value.shape[:3] == key.shape[:3]
        and heads % key_heads == 0
        and length <= keys
        and len(bits) in (1, batch)
        and bits.shape[1:] == (length, 4 * -(-keys // 32))
    )


def _bits(mask: Tensor) -> Tensor:
    """Return which keys a query sees: 32 keys in four bytes, uint8 [batch or 1, length, 4 · blocks of 32 keys]."""
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    padded = F.pad(visible, (0, -visible.shape[-1] % 32))
    return torch.from_numpy(np.packbits(padded.numpy(), axis=-1, bitorder="little"))


class _CAttention(torch.autograd.Function):
    """The same by a C function, in bfloat16; it keeps its inputs and its output, and no probabilities.

    There is also memory for log₂ of each query's sum of exponentials. The function for AMX writes them forward, and
    backward computes P from them. The one for AVX-512 does not use that memory: backward, it adds the sums again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, bits: Tensor, call: Any) -> Tensor:
        out = _by_token(query, value.shape[-1])
        tensors = query, key, value, out, query.new_empty(*query.shape[:3], 1, dtype=torch.float32)
        _call_c(call, scale, bits, *tensors)
        ctx.save_for_backward(*tensors, bits)
        ctx.call, ctx.scale = call, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *kept, bits = ctx.saved_tensors
        gradients = [_by_token(tensor, tensor.shape[-1]) for tensor in kept[:3]]
        _call_c(ctx.call, ctx.scale, bits, *kept, d_out, *gradients)
        return *gradients, None, None, None


def _by_token(like: Tensor, width: int) -> Tensor:
    """Return new memory [batch, heads, length, width], in which the heads of a token are beside each other."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def _call_c(call: Callable[..., None], scale: float, bits: Tensor, *tensors: Tensor) -> None:
    """Call the C function for q, k, v, out, log₂ of the sums and, if there are gradients, d_out, dq, dk, dv.

    Threads share the key heads.
    """
    tensors = tuple(tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors)
    (batch, heads, queries, _), (key_heads, keys) = tensors[0].shape, tensors[1].shape[1:3]
    columns = 32 * -(-max(tensors[0].shape[3], tensors[2].shape[3]) // 32)
    views = [number for t in tensors for number in (t.data_ptr(), *t.stride()[:3], t.shape[3])]
    sizes = heads, key_heads, queries, keys, columns
    of_bits = bits.data_ptr(), bits.stride(0) // 4 if len(bits) > 1 else 0
    given = struct.pack("=50qd2q", *views, *[0] * (45 - len(views)), *sizes, scale, *of_bits)

    def compute(part: tuple[int, int]) -> None:
        own = torch.empty(_memory(keys, columns), dtype=torch.bfloat16, device="cpu")
        call(given, *(bound * heads // key_heads for bound in part), own.data_ptr())

    parts = torch.get_num_threads()
    bounds = [batch * key_heads * part // parts for part in range(parts + 1)]
    in_threads(compute, list(pairwise(bounds)))


def _memory(keys: int, columns: int) -> int:
    """Return how many numbers of 16 bits one call of either C function needs, for no more queries than keys.

    AMX needs most for each block of keys, and more beside the blocks as well, unless the columns are very many.

    Args:
        keys: the number of keys.
        columns: the larger width, of keys or of values, as a multiple of 32.
    """
    return -(-keys // 32) * (320 * columns + 3202) + 224 * columns + 4096


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: list[Block]) -> Tensor:
        batch, heads, length, _ = query.shape
        q, k, v = _by_key_head(query, key) * scale, key.flatten(0, 1).contiguous(), value.flatten(0, 1).contiguous()
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        seen = sum((block.queries.stop - block.queries.start) * block.seen for block in blocks)
        keeps, kept = any(ctx.needs_input_grad) and seen <= _KEPT_KEYS * length, []
        for block in blocks:
            probabilities = _probabilities(q, k, block)
            of_block = out[:, :, block.queries]
            of_block.copy_((probabilities @ _visible_keys(v, block)).view(of_block.shape))
            if keeps:
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.blocks, ctx.shapes = scale, blocks, (query.shape, key.shape, value.shape)
        return out.view(batch, heads, length, v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        d_out = d_out.reshape(*q.shape[:3], v.shape[-1])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for number, block in enumerate(ctx.blocks):
            probabilities = kept[number] if kept else _probabilities(q, k, block)
            d_block = d_out[:, :, block.queries].flatten(1, 2)
            _add_to_visible(dv, block, probabilities.transpose(1, 2) @ d_block)
            d_scores = d_block @ _visible_keys(v, block).transpose(1, 2)
            d_scores = torch._softmax_backward_data(d_scores, probabilities, -1, q.dtype)
            d_queries = dq[:, :, block.queries]
            d_queries.copy_((d_scores @ _visible_keys(k, block)).view(d_queries.shape))
            _add_to_visible(dk, block, d_scores.transpose(1, 2) @ q[:, :, block.queries].flatten(1, 2))
        dq *= ctx.scale
        return dq.view(ctx.shapes[0]), dk.view(ctx.shapes[1]), dv.view(ctx.shapes[2]), None, None


def _probabilities(q: Tensor, k: Tensor, block: Block) -> Tensor:
    """Return P of a block, [batch · key heads, queries of a key head · queries, visible keys].

    The scaled queries q are [batch · key heads, queries of a key head, length, width], the keys k [batch · key heads,
    keys, width].
    """
    scores = q[:, :, block.queries].flatten(1, 2) @ _visible_keys(k, block).transpose(1, 2)
    rows, queries = block.hidden.shape[:2]  # a row of the mask may stand for the whole batch
    partly_hidden = scores.view(rows, -1, queries, block.seen)[..., block.seen_by_all :]
    partly_hidden += additive_mask(block.hidden, scores.dtype)[:, None]
    return torch.softmax(scores, -1)


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """Group the queries by their key head: [batch · key heads, queries of a key head, length, width]."""
    batch, heads, length, width = query.shape
    return query.reshape(batch * key.shape[1], heads // key.shape[1], length, width)


def _visible_keys(keys: Tensor, block: Block) -> Tensor:
    """Return the keys (or values) [heads, keys, width] that a block sees."""
    runs = [keys[:, run] for run in block.keys]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 1)


def _add_to_visible(sums: Tensor, block: Block, gradient: Tensor) -> None:
    """Add the gradient of what `_visible_keys` returns to the gradient of all keys."""
    sizes = [run.stop - run.start for run in block.keys]
    for run, part in zip(block.keys, torch.split(gradient, sizes, 1), strict=True):
        sums[:, run] += part
