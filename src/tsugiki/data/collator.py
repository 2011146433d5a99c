"""Collate rows of `data.blocks` into batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
