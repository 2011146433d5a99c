"""Keys and values of the beginnings of prompts, kept for later requests.

They are kept in blocks of 16 tokens. A block depends on what computed it and on all tokens up to its end, so its key is
a digest of both; what computed it is known by the digest of the adapter's content, never by its name. Two prompts with
the same beginning share its blocks. The blocks that were not used for the longest time make room for others, and of one
prompt those at its end first, because a block is of no use without those before it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tsugiki.generation.growing_cache import GrowingCache
from tsugiki.generation.rows import CachedRows
from tsugiki.io.digests import sha256_bytes

BLOCK = 16  # tokens, as in vLLM

Block: TypeAlias = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, both [heads, BLOCK, width]."""


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt."""

    blocks: Sequence[Block] = ()

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.blocks) * BLOCK


class PrefixCache:
    """Blocks of keys and values, the least recently used one first."""

    def __init__(self, most_bytes: int) -> None:
        """Create it.

        Args:
            most_bytes: of all blocks; 0: nothing is kept.
        """
        self.most_bytes, self.bytes = most_bytes, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def find(self, content: str, tokens: Sequence[int]) -> Prefix:
        """Return the longest beginning of some tokens that is kept.

        Args:
            content: what computes the tokens: the digest of the adapter's content, or "" for the base.
            tokens: the tokens.
        """
        if not self._blocks:
            return Prefix()
        found = []
        for key in _keys(content, tokens):
            if key not in self._blocks:
                break
            found.append(key)
        self._touch(found)
        return Prefix([self._blocks[key] for key in found])

    def keep(self, content: str, tokens: Sequence[int], cached: CachedRows, row: int) -> None:
        """Keep the keys and values of a row, as many as there is room for.

        Args:
            content: as in `find`.
            tokens: those of the row that are in the cache.
            cached: the rows. Those of a soft prompt, which have more keys than tokens, are not kept.
            row: the index of the row.
        """
        columns = cached.mask.shape[1]
        if any(layer.keys.shape[-2] != columns for layer in cached.cache.layers):
            return
        first, keys = columns - len(tokens), list(_keys(content, tokens))
        self._touch(keys)
        for place, key in enumerate(keys):
            if key in self._blocks:
                continue
            columns_of_block = slice(first + place * BLOCK, first + (place + 1) * BLOCK)
            block = [
                (layer.keys[row, :, columns_of_block].clone(), layer.values[row, :, columns_of_block].clone())
                for layer in cached.cache.layers
            ]
            if not self._make_room(_bytes(block), set(keys)):
                break
            self._blocks[key] = block
            self.bytes += _bytes(block)
        self._touch(keys)

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
    """Return rows in whose cache the beginnings of their prompts are.

    Args:
        mask: of the whole prompts, padded on the left, [rows, tokens].
        prefixes: a beginning for each row; of at least one row it is not empty.
        columns: how many columns the cache is to have. Of each prefix, what is in these columns is used.
    """
    start = mask[:, :columns]
    lengths = start.sum(1).tolist()
    cache = GrowingCache()
    some = next(prefix for prefix in prefixes if prefix.blocks)
    for index, (keys, values) in enumerate(some.blocks[0]):
        filled = []
        for which, like in enumerate((keys, values)):
            whole = like.new_zeros(len(prefixes), like.shape[0], columns, like.shape[2])
            for row, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
                if length:
                    used = [block[index][which] for block in prefix.blocks[: -(-length // BLOCK)]]
                    whole[row, :, columns - length :] = torch.cat(used, 1)[:, :length]
            filled.append(whole)
        cache.update(filled[0], filled[1], index)
    return CachedRows(start, cache)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how long the common beginning of two rows is."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def _keys(content: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """Yield the key of each whole block."""
    key = sha256_bytes(content.encode())
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        key = sha256_bytes(key + array("q", tokens[start : start + BLOCK]).tobytes())
        yield key


def _bytes(block: Block) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in block)
