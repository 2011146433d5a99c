"""What a step minimises: the cross-entropy of texts, or another loss with the same interface."""

from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import StepBatches
from tsugiki.fast.forward import has_chunked_loss
from tsugiki.model.context import IGNORE_INDEX


class StepLoss(Protocol):
    """The loss of some rows of a step, and figures that are reported with it."""

    figures: int
    """How many figures it reports."""

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """Called before the micro-batches of a step, with the model that computes."""

    def count(self, batches: StepBatches, rows: list[int]) -> int:
        """Return by what the summed loss of these rows is divided, such as their tokens or pairs."""

    def __call__(
        self, model: PreTrainedModel, batch: dict[str, Any], rows: list[int], count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the summed loss of a batch divided by `count`, and the figures [figures]; None: it has none.

        `batch` has the arguments of the model and `labels`, all on its device, for the rows with these numbers. `count`
        is that of the whole step. The figures are sums over the batch, without gradients.
        """


class TextLoss:
    """The cross-entropy of the target tokens, in nats."""

    figures = 0

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """Nothing has to be computed before the micro-batches."""

    def count(self, batches: StepBatches, rows: list[int]) -> int:
        """Return how many tokens of the rows are in the loss."""
        return sum(map(batches.blocks.row_target_tokens, rows))

    def __call__(
        self, model: PreTrainedModel, batch: dict[str, Any], rows: list[int], count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the cross-entropy summed over the target tokens, divided by `count`; see `StepLoss`."""
        labels = batch.pop("labels")
        if has_chunked_loss(model):
            return model(**batch, labels=labels, num_items_in_batch=count, use_cache=False).loss, None
        logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = labels[:, 1:].flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum") / count, None
