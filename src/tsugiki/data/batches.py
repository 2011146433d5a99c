"""Choose the rows of each optimiser step, by the seed and the number of the step alone, independent of the machine.

Every epoch has a new random order of all rows, from the seed and the number of the epoch. A step takes the next
`batch_size` rows; the last step of an epoch may have fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tsugiki.data.blocks import Blocks
from tsugiki.fast.document_masks import DocumentMasking, mask_documents


class Collator:
    """Stacks rows of a dataset into a batch for a model, so that it masks documents from each other.

    Args:
        masking: how the model masks documents in the same row from each other (see `fast.document_masks`).
        dtype: the dtype of an attention mask, which must be that of the model.
    """

    def __init__(self, masking: DocumentMasking, dtype: torch.dtype = torch.float32) -> None:
        self.masking: DocumentMasking = masking
        self.dtype = dtype

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the rows and add the arguments that mask documents."""
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return mask_documents(batch, self.masking, self.dtype)


@dataclass(frozen=True)
class StepBatches:
    """The rows of every optimiser step of a run. Steps are counted from 0."""

    blocks: Blocks
    collate: Collator
    batch_size: int
    """Rows of an optimiser step, over all processes."""
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps in an epoch."""
        return -(-len(self.blocks) // self.batch_size)

    def rows(self, step: int) -> list[int]:
        """Return the indices of the rows of a step, in order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self.blocks), self.seed + epoch)
        rows: list[int] = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        return rows

    def target_tokens(self, step: int) -> int:
        """Return how many tokens of a step are in the loss."""
        return sum(map(self.blocks.row_target_tokens, self.rows(step)))

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Return the arguments of the model for some rows, and their labels; the first axis of each is the row.

        Padding at the end that is common to all rows is left out.
        """
        longest = max(map(self.blocks.row_tokens, rows))
        items = [self.blocks[row] for row in rows]
        return self.collate([{name: tensor[:longest] for name, tensor in item.items()} for item in items])


@lru_cache(maxsize=2)
def _epoch_order(rows: int, seed: int) -> Tensor:
    """Return the order, int32 [rows]: 4 bytes for each row."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).int()


def of_similar_length(lengths: Sequence[int], tokens: int, size: int = 1) -> list[list[int]]:
    """Group rows, whose numbers of tokens are given, by length, the longest rows first; return their indices.

    A group may always have `size` rows, and more if it has at most `tokens` tokens, padding included.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # a stable order
        count = len(groups[-1]) + 1 if groups else 0
        if groups and (count <= size or count * lengths[groups[-1][0]] <= tokens):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
