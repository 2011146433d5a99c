"""Batches from the rows of `data.blocks`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki.fast.document_masks import DocumentMasking, mask_documents


class Collator:
    """Stacks rows of a dataset into a batch for a model, so that it masks documents from each other.

    Args:
        masking: what the model can do (see `fast.document_masks`).
        dtype: of an attention mask; the model's.
    """

    def __init__(self, masking: DocumentMasking, dtype: torch.dtype = torch.float32) -> None:
        self.masking: DocumentMasking = masking
        self.dtype = dtype

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the model's arguments for these rows."""
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return mask_documents(batch, self.masking, self.dtype)
