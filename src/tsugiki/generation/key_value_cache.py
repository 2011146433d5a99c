"""The key-value cache of a batch whose rows are added and removed, with transformers' public forward pass.

Rows of different lengths are padded on the left, as in `generate`. Every layer of the cache keeps all positions; the
model's own masks leave out what is outside a sliding window. The keys of a soft prompt are before those of the text,
and are not in the mask.

transformers' `DynamicCache` copies all keys and values to new memory for every token. `GrowingCache` allocates memory
for some more tokens than it holds, and appends new ones in place.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import is_not
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tsugiki.annotations import PreTrainedModel

_ROOM = 64  # tokens for which memory is allocated in advance


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, [rows, heads, tokens, width]: views of longer tensors."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[Tensor] = []
        self._views: tuple[Tensor, Tensor] | None = None  # the keys and values that were last in this memory

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.extend(key_states, value_states)
        keys[:, :, -key_states.shape[2] :] = key_states
        values[:, :, -value_states.shape[2] :] = value_states
        return keys, values

    def extend(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Make room for the keys and values of new tokens, which the caller writes to the end of what is returned."""
        before = self.keys, self.values
        length = self.keys.shape[-2] if self.keys.numel() else 0
        whole = length + new_keys.shape[-2]
        # Other code may have assigned new tensors to `keys` and `values`.
        if self._views is None or any(map(is_not, before, self._views)) or self._memory[0].shape[2] < whole:
            shapes = [(*new.shape[:2], whole + _ROOM, new.shape[3]) for new in (new_keys, new_values)]
            self._memory = [new_keys.new_empty(shape) for shape in shapes]
            for memory, part in zip(self._memory, before if length else (), strict=False):
                memory[:, :, :length] = part
        self._views = self.keys, self.values = self._memory[0][:, :, :whole], self._memory[1][:, :, :whole]
        return self._views


class GrowingCache(DynamicCache):  # type: ignore[misc]
    """A `DynamicCache` whose layers are `GrowingLayer`, without sliding windows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer


@dataclass
class CachedRows:
    """The keys and values of some rows."""

    mask: Tensor
    """1 for a token, 0 for padding, [rows, tokens], int64."""
    cache: GrowingCache = field(default_factory=GrowingCache)


def compute(model: PreTrainedModel, cached: CachedRows, ids: Tensor, all_logits: bool = False) -> Tensor:
    """Compute the logits that follow new tokens, int64 [rows, new], and add their keys and values to the cache.

    The mask of `cached` must include the new tokens. The logits are those of the last token, [rows, 1, vocabulary], or
    of all new tokens, [rows, new, vocabulary].
    """
    accepted = inspect.signature(model.forward).parameters
    positions = (cached.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    inputs: dict[str, Any] = {
        "cache" if "cache" in accepted else "past_key_values": cached.cache,  # its name depends on the version
        "position_ids": positions,
        "logits_to_keep": 0 if all_logits else 1,
    }
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=cached.mask,
        use_cache=True,
        **{name: value for name, value in inputs.items() if name in accepted},
    ).logits
    return logits if all_logits else logits[:, -1:]


def bytes_per_token(model: PreTrainedModel) -> int:
    """Return the size of the keys and values of one token in all layers, with the active adapter, if any."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    cached = CachedRows(torch.ones_like(ids))
    compute(model, cached, ids)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cached.cache.layers)


def padded(prompts: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens of prompts, padded on the left, and their mask, both int64 [rows, width]."""
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def joined(one: CachedRows, other: CachedRows) -> CachedRows:
    """Return the rows of both, in this order; `one` must not be used afterwards."""
    length = max(one.mask.shape[1], other.mask.shape[1])
    for mine, its in zip(one.cache.layers, other.cache.layers, strict=True):
        before = mine.keys.shape[-2] - one.mask.shape[1]
        mine.keys = _stacked(mine.keys, its.keys, length, -2, before)
        mine.values = _stacked(mine.values, its.values, length, -2, before)
    return CachedRows(_stacked(one.mask, other.mask, length, -1), one.cache)


def selected(rows: CachedRows, kept: Sequence[int]) -> CachedRows:
    """Return some of the rows; `rows` must not be used afterwards."""
    indices = torch.tensor(kept, device=rows.mask.device)
    for layer in rows.cache.layers:
        layer.keys, layer.values = layer.keys[indices], layer.values[indices]
    return CachedRows(rows.mask[indices], rows.cache)


def without_common_padding(rows: CachedRows) -> CachedRows:
    """Return the rows without the padding that all of them have; `rows` must not be used afterwards."""
    first = int(rows.mask.any(0).int().argmax())
    for layer in rows.cache.layers if first else ():
        before = layer.keys.shape[-2] - rows.mask.shape[1]
        layer.keys, layer.values = (
            part[:, :, first:] if before == 0 else torch.cat([part[:, :, :before], part[:, :, before + first :]], 2)
            for part in (layer.keys, layer.values)
        )
    return CachedRows(rows.mask[:, first:], rows.cache)


def _stacked(one: Tensor, other: Tensor, length: int, dimension: int, before: int = 0) -> Tensor:
    """Stack the rows of two tensors, padded on the left to `length` in `dimension`, which is -1 or -2.

    The first `before` positions of this dimension belong to a soft prompt, and stay the first ones.
    """
    after = [0, 0] * (-1 - dimension)
    parts = []
    for part in (one, other):
        own = part.shape[dimension] - before
        padding = pad(part.narrow(dimension, before, own), [*after, length - own, 0])
        parts.append(torch.cat([part.narrow(dimension, 0, before), padding], dimension) if before else padding)
    return torch.cat(parts)
