"""Whether a run trains with sampled softmax, and the loss of texts with it (see `fast.vocabulary_sample`).

    softmax    sampled if LoRA learns texts on a processor, and a step computes the logits of at most a third of the
               vocabulary; otherwise full

A step computes the logits of the targets in the training data, of the 8,192 tokens to which the base gives the highest
mean probability on a sample of the data, and of 8,192 other tokens, which are drawn for each step. The output layer of
Gemma 3 270M (262,144 tokens) takes two thirds of the multiplications of a step; with sampled softmax, a step takes 0.56
of the time, and the validation loss ends about 0.2 % higher. Without the likely tokens it ends 1 % higher, because
the estimate has a higher variance (docs/training-evidence.md). Evaluations always use the whole vocabulary.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.vocabulary_sample import VocabularySample, can_sample, draw_sample, sampled_loss
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.model.linear import features
from tsugiki.model.undo import base_of
from tsugiki.training.gradients import derived_seed
from tsugiki.training.text_loss import TextLoss

if TYPE_CHECKING:
    from tsugiki.training.run import Run

SAMPLED = "sampled"
_LIKELY, _DRAWN = 8192, 8192  # tokens
_LARGEST_SHARE = 1 / 3  # of the vocabulary; a step of SmolLM2 (49,152 tokens) takes as long with a quarter of it


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


def samples_vocabulary(run: "Run") -> bool:
    """Return whether a run uses sampled softmax, if its model supports it. A resumed run does the same as before."""
    before = run.record.resolved_settings
    if "steps" in before:
        return before.get("softmax") == SAMPLED
    if run.config.softmax is not None:
        return run.config.softmax == SAMPLED
    config, most = run.config, _LARGEST_SHARE * _vocabulary(run.model)
    by_default = run.device.type == "cpu" and isinstance(config.adapter_config, LoraConfig)
    if not by_default or config.preference is not None or run.in_shards or most < _LIKELY + _DRAWN:
        return False  # without looking at all tokens of the data
    return int(is_target(run.data.blocks, _vocabulary(run.model)).sum()) + _LIKELY + _DRAWN <= most


def text_loss(run: "Run") -> TextLoss:
    """Return the loss of a run that learns texts, after its model was made trainable."""
    if run.predictions is None or not samples_vocabulary(run):
        return TextLoss()
    is_lora = isinstance(run.adapter_config, LoraConfig)
    if run.in_shards or not is_lora or not has_chunked_loss(run.model) or not can_sample(head_of(run.model)):
        if run.config.softmax is None:
            return TextLoss()
        message = _(
            "softmax sampled needs LoRA and an output layer that is frozen, not in shards, and of floats or in int8; "
            "leave softmax out"
        )
        raise TsugikiError(message)
    kept = kept_tokens(run.data.blocks, run.predictions.mean_probabilities, _LIKELY)
    return SampledTextLoss(kept.to(run.device), _vocabulary(run.model), _DRAWN, run.config.seed)


def is_target(blocks: Blocks, vocabulary: int) -> Tensor:
    """Return whether each token of the vocabulary is a target in these rows, bool [vocabulary]."""
    found, store = torch.zeros(vocabulary, dtype=torch.bool), blocks.store
    for start, length in zip(blocks.starts.tolist(), blocks.lengths.tolist(), strict=True):
        segment = slice(start, start + length)
        found[torch.from_numpy(store.ids[segment][store.loss_mask[segment].astype(bool)].astype(np.int64))] = True
    return found


def kept_tokens(blocks: Blocks, mean_probabilities: Tensor, likely: int) -> Tensor:
    """Return the ids of the targets in these rows and of the most probable tokens, int64, in ascending order."""
    is_kept = is_target(blocks, len(mean_probabilities))
    is_kept[mean_probabilities.topk(min(likely, len(is_kept))).indices] = True
    return is_kept.nonzero()[:, 0]


def sampling_note(loss: SampledTextLoss) -> str:
    """Return the sentence that says how much of the vocabulary a step computes, and how to compute all of it."""
    return _(
        "each step computes the logits of {part:,} of {whole:,} tokens: those of the text, likely ones, and a sample "
        "of the others (--softmax full computes all)"
    ).format(part=len(loss.kept) + loss.drawn, whole=len(loss.kept) + len(loss.others))


def _vocabulary(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    return 0 if head is None else features(base_of(head))[1]
