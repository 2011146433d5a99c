"""How documents that share a row are kept from seeing each other, found out by trying.

Which way works depends on the model and on transformers (5.24): most architectures isolate by positions that begin
anew, as long as there is no attention mask and no cache; OPT needs a mask of its own; BLOOM can do neither. So each
model is asked: with two short documents in one row, the second one must have the logits that it has alone, and to
the last bit the same ones whatever the first one says.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from tsugiki.base.inference import evaluating, probe_ids, same_to_rounding
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DocumentMasking: TypeAlias = Literal["positions", "mask", "rows"]
"""By `position_ids`, by a 4-d mask, or not at all: each document has a row of its own."""

_FIRST, _SECOND = 9, 14  # tokens of the two documents


def detect_document_masking(model: "PreTrainedModel") -> DocumentMasking:
    """The first way that isolates documents in this model; leaves its mode as it was."""
    first, other, second = torch.split(probe_ids(model, 2 * _FIRST + _SECOND)[0], [_FIRST, _FIRST, _SECOND])
    with evaluating(model):
        alone = model(input_ids=second[None], use_cache=False).logits[0]
        ways: tuple[DocumentMasking, ...] = ("positions", "mask")
        for way in ways:
            try:
                packed = _after(model, first, second, way)
                if torch.equal(packed, _after(model, other, second, way)) and same_to_rounding(packed, alone):
                    return way
            except (ValueError, RuntimeError, TypeError, TsugikiError):  # a model that does not take such a mask
                continue
    return "rows"


def isolated(
    batch: dict[str, Tensor], isolation: DocumentMasking, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A batch as a model is given it, from `input_ids`, `labels` and `position_ids` [rows, length]."""
    match isolation:
        case "positions":
            return batch
        case "mask":
            return {**batch, "attention_mask": _mask(batch["position_ids"], dtype)}
        case "rows":  # nothing in front of a document: causal attention needs no more
            return {name: tensor for name, tensor in batch.items() if name != "position_ids"}


class Collator:
    """Makes a batch of rows from `data.blocks`, isolated."""

    def __init__(self, isolation: DocumentMasking, dtype: torch.dtype = torch.float32) -> None:
        self.isolation: DocumentMasking = isolation
        self.dtype = dtype

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the rows, and add what isolates their documents."""
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return isolated(batch, self.isolation, self.dtype)


def _after(model: "PreTrainedModel", first: Tensor, second: Tensor, way: DocumentMasking) -> Tensor:
    """Logits of the second document behind the first, [length, vocabulary]."""
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))]).to(model.device)
    batch = {"input_ids": torch.cat([first, second])[None], "position_ids": positions[None]}
    logits: Tensor = model(**isolated(batch, way, model.dtype), use_cache=False).logits
    return logits[0, len(first) :]


def _mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1, length, length], 0 where a token sees another, the type's lowest number elsewhere.

    Added to the scores, since eager attention takes a boolean mask for numbers.
    """
    document = (positions == 0).cumsum(-1)
    length = positions.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    seen = (document[:, :, None] == document[:, None, :]) & causal
    return torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill(~seen, torch.finfo(dtype).min)[
        :, None
    ]
