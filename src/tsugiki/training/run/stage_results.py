"""What the stages of a run return for the stages after them (see `training.run.stages`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.dtypes import BaseDtype
from tsugiki.training.choose.choices import Choices
from tsugiki.training.data.divide import Division
from tsugiki.training.data.packing import PackedDataset
from tsugiki.training.run.start import Start
from tsugiki.training.step.loop import TrainingLoop
from tsugiki.training.step.setup import build_loop
from tsugiki.training.step.text_loss import StepLoss

if TYPE_CHECKING:
    from tsugiki.base.new_words import NewWords


@dataclass(frozen=True)
class Texts:
    """The tokenizer and the data of a run, which depend only on the tokenizer of its model."""

    tokenizer: PreTrainedTokenizerBase
    new_words: "NewWords | None"
    division: Division


@dataclass(frozen=True)
class Base:
    """A base model, and the data in rows for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: PackedDataset
    dtype: BaseDtype
    """The dtype in which the model was loaded."""


@dataclass(frozen=True)
class Layers:
    """The layers that an adapter changes."""

    adapter_config: Any
    """The settings of the method, with the layers that were chosen."""
    head_factor: float = 1.0
    """Learning rate of the output head's B relative to that of the run."""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Ready:
    """A run that is ready for its first step: the model is grafted, and everything is chosen."""

    choices: Choices
    loss: StepLoss
    """What a step minimises."""
    resolved: Mapping[str, Any]
    """What was chosen, for the record."""
    notes: Sequence[str]
    """Notes on this run, one sentence each; runs that share data have the notes of the data in common."""
    references: Mapping[str, Tensor] = field(default_factory=dict)
    """Of preference tuning: part of the data (training, held_out or validation) -> log-probabilities under the
    reference, [records]. Empty for a loss without a reference, and before `add_reference`."""


def loop_of(start: Start, base: Base, loss: StepLoss, choices: Choices) -> TrainingLoop:
    """Return the loop of a run whose model was made trainable. It writes no checkpoints."""
    data = base.data
    return build_loop(start.accelerator, start.config, choices, base.model, data.blocks, data.document_masking, loss)


@dataclass(frozen=True)
class Prepared:
    """A run before its first step, with all results of its stages so far."""

    start: Start
    base: Base
    ready: Ready

    def loop(self, choices: Choices | None = None) -> TrainingLoop:
        """Return the loop of the run, with its own choices or with others."""
        return loop_of(self.start, self.base, self.ready.loss, choices or self.ready.choices)
