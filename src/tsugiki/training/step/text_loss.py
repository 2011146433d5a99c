"""What a step minimises: the cross-entropy of texts, also with sampled softmax, or another loss with this interface."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import StepBatches
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.vocabulary_sample import VocabularySample, draw_sample, sampled_loss
from tsugiki.language import _
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


class SampledTextLoss(TextLoss):
    """The cross-entropy of the target tokens, in nats, with sampled softmax.

    Which tokens are drawn depends on the run's seed and the step alone. So they are the same in all processes and
    micro-batches, and in a resumed run.
    """

    def __init__(self, kept: Tensor, vocabulary: int, drawn: int, seed: int) -> None:
        """Create it; `kept` tokens, int64, with all targets among them, and `drawn` others are used in each step."""
        is_other = torch.ones(vocabulary, dtype=torch.bool, device=kept.device)
        is_other[kept] = False
        self.kept, self.others = kept, is_other.nonzero()[:, 0]
        self.drawn, self.seed = min(drawn, len(self.others)), seed
        self.sample: VocabularySample | None = None

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """Draw the tokens of a step."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
        self.sample = draw_sample(head_of(model), self.kept, self.others, self.drawn, generator)

    def __call__(
        self, model: PreTrainedModel, batch: dict[str, Any], rows: list[int], count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss summed over the target tokens, divided by `count`; see `StepLoss`."""
        assert self.sample is not None
        labels = batch.pop("labels")[:, 1:]
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
        return sampled_loss(hidden, head_of(model), labels, self.sample) / count, None


def sampling_note(loss: SampledTextLoss) -> str:
    """Return the sentence that says how much of the vocabulary a step computes, and how to compute all of it."""
    return _(
        "each step computes the logits of {part:,} of {whole:,} tokens: those of the text, likely ones, and a sample "
        "of the others ({flag:softmax full} computes all)",
        part=len(loss.kept) + loss.drawn,
        whole=len(loss.kept) + len(loss.others),
    )


def derived_seed(*numbers: int) -> int:
    """Return a seed (63 bits) from numbers, such as the run's seed, the step, and the place of a row in the step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
