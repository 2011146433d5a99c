"""The loss of texts with sampled softmax (see `fast.vocabulary_sample`)."""

from typing import Any

import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.fast.forward import head_of
from tsugiki.fast.vocabulary_sample import VocabularySample, draw_sample, sampled_loss
from tsugiki.language import _
from tsugiki.training.step.gradients import derived_seed
from tsugiki.training.step.text_loss import TextLoss


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
        "of the others ({flag:softmax full} computes all)"
    ).format(part=len(loss.kept) + loss.drawn, whole=len(loss.kept) + len(loss.others))
