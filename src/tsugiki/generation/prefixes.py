"""Keys and values of the beginnings of prompts, kept for later requests.

They are kept in blocks of 16 tokens. A block depends on what computed it and on all tokens up to its end, so its key is
a digest of both; what computed it is known by the digest of the adapter's content, never by its name. Two prompts with
the same beginning share its blocks. The blocks that were not used for the longest time make room for others, and of one
prompt those at its end first, because a block is of no use without those before it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tsugiki.generation.key_value_cache import CachedRows, GrowingCache
from tsugiki.generation.request import Row
from tsugiki.io.digests import sha256_bytes

BLOCK = 16  # tokens, as in vLLM

Block: TypeAlias = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, both [heads, BLOCK, width]."""
Prefix: TypeAlias = Sequence[Block]
"""The beginning of a prompt."""


class PrefixCache:
    """Blocks of keys and values, the least recently used one first, and the rules for the rows that share them."""

    def __init__(self, most_bytes: int) -> None:
        """Create it for at most so many bytes of blocks; 0: nothing is kept."""
        self.most_bytes, self.bytes = most_bytes, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def shares(self, row: Row) -> bool:
        """Return whether a row may use keys and values of other requests, and leave its own to them.

        It may not if they depend on the length of the row ("alone"), or after a failure.
        """
        request = row.request
        can = request.batch_mode != "alone" and not row.separate
        return can and request.content is not None and self.most_bytes > 0

    def find(self, row: Row) -> Prefix:
        """Return the part of a row that need not be computed. Its last token is none of it: its logits are needed."""
        if not self._blocks or not self._uses(row):
            return []
        found = []
        for key in _keys(row, row.length - 1):
            if key not in self._blocks:
                break
            found.append(key)
        self._touch(found)
        return [self._blocks[key] for key in found]

    def keep(self, row: Row, cached: CachedRows, index: int) -> None:
        """Keep the keys and values of a row for other requests, as many as there is room for.

        The row has this index in its batch. Rows with a soft prompt, which have more keys than tokens, are not kept.
        """
        columns, layers = cached.mask.shape[1], cached.cache.layers
        if not self.shares(row) or any(layer.keys.shape[-2] != columns for layer in layers):
            return
        length = int(cached.mask[index].sum())
        keys = list(_keys(row, length))
        self._touch(keys)
        for place, key in enumerate(keys):
            if key in self._blocks:
                continue
            start = columns - length + place * BLOCK
            block_of = (index, slice(None), slice(start, start + BLOCK))
            try:
                block = [(layer.keys[block_of].clone(), layer.values[block_of].clone()) for layer in layers]
            except RuntimeError:  # there is not enough memory
                break
            if not self._make_room(_bytes(block), set(keys)):
                break
            self._blocks[key] = block
            self.bytes += _bytes(block)
        self._touch(keys)

    def worth_waiting(self, row: Row, first: Row, known: Prefix, tokens: int) -> bool:
        """Return whether the prompt of `first`, which is being computed, would spare `row` at least so many tokens.

        `known` is the prefix of `row` that is in the cache now.
        """
        if not (self.shares(first) and self._uses(row)):
            return False
        same = first.request.content == row.request.content
        return same and common_tokens(first.tokens, row.tokens) - len(known) * BLOCK >= tokens

    def _uses(self, row: Row) -> bool:
        """Return whether a row may use other rows' keys and values: not if it needs the logits of its whole prompt."""
        return self.shares(row) and (row.scored or not row.request.prompt_logprobs)

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Mark the blocks of a prompt as used, the last one first."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def _make_room(self, size: int, wanted: set[bytes]) -> bool:
        """Drop the least recently used blocks, none of those wanted, until one of this size may be added."""
        while self.bytes + size > self.most_bytes:
            oldest = next(iter(self._blocks), None)
            if oldest is None or oldest in wanted:
                return False
            self.bytes -= _bytes(self._blocks.pop(oldest))
        return True


def rows_with_prefixes(mask: Tensor, prefixes: Sequence[Prefix], columns: int) -> CachedRows:
    """Return rows in whose cache the beginnings of their prompts are, of which at least one is not empty.

    The cache has `columns` columns of the whole prompts, whose mask [rows, tokens] is padded on the left.
    """
    start = mask[:, :columns]
    lengths = start.sum(1).cpu().tolist()
    cache = GrowingCache()
    some = next(prefix for prefix in prefixes if prefix)
    for index, (keys, values) in enumerate(some[0]):
        filled = []
        for which, like in enumerate((keys, values)):
            whole = like.new_zeros(len(prefixes), like.shape[0], columns, like.shape[2])
            for row, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
                if length:
                    used = [block[index][which] for block in prefix[: -(-length // BLOCK)]]
                    whole[row, :, columns - length :] = torch.cat(used, 1)[:, :length]
            filled.append(whole)
        cache.update(filled[0], filled[1], index)
    return CachedRows(start, cache)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how long the common beginning of two rows is."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def _keys(row: Row, length: int) -> Iterator[bytes]:
    """Yield the key of each whole block of a row's first tokens."""
    key, tokens = sha256_bytes((row.request.content or "").encode()), row.tokens
    for start in range(0, length - BLOCK + 1, BLOCK):
        key = sha256_bytes(key + array("q", tokens[start : start + BLOCK]).tobytes())
        yield key


def _bytes(block: Block) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in block)
