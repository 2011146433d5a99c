"""A key-value cache that allocates memory in advance.

transformers' `DynamicCache` copies all keys and values to new memory for every token. This cache allocates memory for
some more tokens than it holds, and appends new ones in place.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # tokens for which memory is allocated in advance


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, [rows, heads, tokens, width]: views of longer tensors."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._with_room: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, before: Tensor, new: Tensor) -> Tensor:
        length = before.shape[-2] if before.numel() else 0
        whole = length + new.shape[-2]
        memory = self._with_room.get(name)
        if memory is None or not _begins(memory, before) or memory.shape[2] < whole:
            memory = new.new_empty(*new.shape[:2], whole + _ROOM, new.shape[3])
            if length:
                memory[:, :, :length] = before
            self._with_room[name] = memory
        memory[:, :, length:whole] = new
        return memory[:, :, :whole]


class GrowingCache(DynamicCache):  # type: ignore[misc]
    """A `DynamicCache` whose layers are `GrowingLayer`, without sliding windows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer


def _begins(memory: Tensor, part: Tensor) -> bool:
    """Return whether `part` is a view of the first tokens of `memory`.

    It is not if other code has assigned new tensors to `keys` and `values`.
    """
    return (
        part.data_ptr() == memory.data_ptr()
        and part.stride() == memory.stride()
        and part.shape[:2] == memory.shape[:2]
        and part.dtype == memory.dtype
    )
