"""Whether the loss of a run samples the vocabulary, and the loss that does (see `fast.vocabulary_sample`).

    softmax    sampled if LoRA learns texts on a processor, and the tokens of a step are at most a third of the
               vocabulary; otherwise full

In each step, the tokens that are targets in the training data and the 8,192 that the base finds likeliest on a sample
of it have logits, and 8,192 of the others, drawn anew. With Gemma 3 270M, whose output layer (262,144 tokens) has two
thirds of the products, a step takes 0.56 of the time, and the loss on unseen text is at most 0.2 % higher. Without the
likely tokens, which hold nearly all of the probability, it is 1 % higher: drawn tokens alone are a noisy estimate
(docs/training-evidence.md). Evaluations always use the whole vocabulary.
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
from tsugiki.training.config import RunConfig
from tsugiki.training.text_loss import TextLoss

if TYPE_CHECKING:
    from tsugiki.training.run import Run

SAMPLED = "sampled"
_LIKELY, _DRAWN = 8192, 8192  # tokens
_LARGEST_SHARE = 1 / 3  # of the vocabulary; a step of SmolLM2 (49,152 tokens) takes as long with a quarter of it


class SampledTextLoss(TextLoss):
    """The cross-entropy of the target tokens, in nats, in which drawn tokens stand for those that are not kept.

    The draw of a step depends on the run's seed and the step alone, so it is the same for all processes and micro-
    batches, and after an interruption.
    """

    def __init__(self, kept: Tensor, vocabulary: int, drawn: int, seed: int) -> None:
        """Create it: `kept` has tokens of the vocabulary, int64, with all targets; `drawn` others are drawn."""
        is_other = torch.ones(vocabulary, dtype=torch.bool, device=kept.device)
        is_other[kept] = False
        self.kept, self.others = kept, is_other.nonzero()[:, 0]
        self.drawn, self.seed = min(drawn, len(self.others)), seed
        self.sample: VocabularySample | None = None

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """Draw the tokens of a step."""
        state = int(np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(state)
        self.sample = draw_sample(head_of(model), self.kept, self.others, self.drawn, generator)

    def __call__(
        self, model: PreTrainedModel, batch: dict[str, Any], rows: list[int], count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss summed over the target tokens, divided by `count`; see `StepLoss`."""
        assert self.sample is not None
        labels = batch.pop("labels")[:, 1:]
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
        return sampled_loss(hidden, head_of(model), labels, self.sample) / count, None


def wants_sampled(run: "Run") -> bool:
    """Return whether the loss will be sampled if the model allows it. A resumed run has the same loss as before."""
    setting, before = run.config.softmax, run.record.resolved_settings
    if "steps" in before:
        return before.get("softmax") == SAMPLED
    if setting is not None:
        return setting == SAMPLED
    part = len(target_tokens(run.data.blocks)) + _LIKELY + _DRAWN
    return _is_default(run.config, run.device) and part <= _LARGEST_SHARE * _vocabulary(run.model)


def _is_default(config: RunConfig, device: torch.device) -> bool:
    """Return whether runs with these settings sample a large vocabulary by default."""
    is_lora = isinstance(config.adapter_config, LoraConfig)
    return device.type == "cpu" and is_lora and config.preference is None and config.shard == "none"


def text_loss(run: "Run") -> TextLoss:
    """Return the loss of a run that learns texts, after its model was made trainable."""
    if run.predictions is None or not wants_sampled(run):
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


def target_tokens(blocks: Blocks) -> Tensor:
    """Return the tokens that are targets in the data, int64, each once and in order."""
    store = blocks.store
    return torch.from_numpy(np.unique(store.ids[np.asarray(store.loss_mask, bool)]).astype(np.int64))


def kept_tokens(blocks: Blocks, mean_probabilities: Tensor, likely: int) -> Tensor:
    """Return the targets and the likeliest tokens, int64, each once and in order."""
    is_kept = torch.zeros(len(mean_probabilities), dtype=torch.bool)
    is_kept[target_tokens(blocks)] = True
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
