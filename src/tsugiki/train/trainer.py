"""A subclass of transformers' Trainer that replaces the loss, the gradients, the meters and the checkpoints.

The stock Trainer saves the whole grafted base under names that `from_pretrained` does not recognise: it re-initialises
these weights without an error. It also pickles the optimiser. Everything that it saves or loads is replaced here (see
`checkpoint`).
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tsugiki.data.blocks import Blocks
from tsugiki.data.collator import Collator
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.io.atomic import new_folder
from tsugiki.labels import IGNORE_INDEX
from tsugiki.train.checkpoint import (
    keep_newest,
    load_training_state,
    restore_random_states,
    save_training_state,
)
from tsugiki.train.gradients import Gradients
from tsugiki.train.model import load_trained, save_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KEPT_CHECKPOINTS = 2


@dataclass
class Meters:
    """Sums over all steps so far; checkpoints contain them."""

    nll: float = 0.0
    """Summed loss of all target tokens, in nats."""
    tokens: int = 0
    """Number of target tokens."""
    seconds: float = 0.0
    """Time spent in steps, without evaluating, sampling and saving."""

    @property
    def loss(self) -> float:
        """Mean loss per target token over the whole run, in nats."""
        return self.nll / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Target tokens per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def token_weighted_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """Return the summed cross-entropy of the target tokens, divided by the target tokens of the whole optimiser step.

    All tokens of a step have the same weight, no matter how its rows are distributed over accumulated batches.

    Args:
        outputs: output of a causal language model, with `logits` [rows, length, vocabulary].
        labels: [rows, length], not shifted; `IGNORE_INDEX` excludes a token from the loss.
        num_items_in_batch: number of target tokens in all accumulated batches of the step.
    """
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum") / num_items_in_batch


class RunTrainer(Trainer):  # type: ignore[misc]
    """Trains the parameters with `requires_grad`, such as those of the active adapter, on blocks of tokens."""

    def __init__(
        self,
        model: "PreTrainedModel",
        args: TrainingArguments,
        blocks: Blocks,
        document_masking: DocumentMasking,
        tokenizer: "PreTrainedTokenizerBase",
        gradients: Gradients | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Create the trainer.

        Args:
            model: a prepared model (see `train.model`).
            args: transformers' settings.
            blocks: the training data.
            document_masking: how documents in the same row are masked from each other.
            tokenizer: the model's tokenizer, which is saved with a whole model.
            gradients: computes loss and gradients; None: transformers' Trainer does.
            optimizer: None: Trainer's AdamW.
        """
        super().__init__(
            model=model,
            args=args,
            train_dataset=blocks,
            data_collator=Collator(document_masking, next(model.parameters()).dtype),
            compute_loss_func=token_weighted_loss,
            optimizers=(optimizer, None),
        )
        self.tokenizer = tokenizer
        self.gradients = gradients
        # Trainer recognises models that predict the next token by the name of their loss; here all of them do.
        self._loss_shifts_labels = True
        self.meters = Meters()
        self.step_loss = 0.0
        """Loss of the current optimiser step, in nats per token."""
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepClock(self))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one batch forward and backward, and add its loss and tokens to the meters.

        Returns:
            The loss of the batch.

        Raises:
            TsugikiError: the loss is not finite.
        """
        # With several processes or devices, torch has to gather the gradients, which `Gradients` does not do.
        alone = self.accelerator.num_processes == 1 and self.args.n_gpu <= 1
        loss: Tensor = (
            self.gradients.add(self._prepare_inputs(inputs), num_items_in_batch)
            if self.gradients and alone
            else super().training_step(model, inputs, num_items_in_batch)
        )
        value = float(loss)
        if not torch.isfinite(loss):
            raise TsugikiError(
                f"the loss is {value} at step {self.state.global_step + 1}: lower the learning rate "
                f"({self.args.learning_rate}) and start again, or continue from the last checkpoint with --resume"
            )
        self.step_loss += value
        self.meters.nll += value * float(num_items_in_batch)
        self.meters.tokens += int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter of a grafted model, without its base, or else the whole model."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            save_trained(self.accelerator.unwrap_model(self.model), self.tokenizer, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.args.should_save:
            return
        root = Path(str(self.args.output_dir))
        with new_folder(root / f"checkpoint-{self.state.global_step}", replace=True) as temporary:
            self.save_model(str(temporary))
            save_training_state(
                temporary, self.optimizer.state_dict(), self.lr_scheduler.state_dict(), asdict(self.meters)
            )
            self.state.save_to_json(str(temporary / "trainer_state.json"))
        keep_newest(root, _KEPT_CHECKPOINTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer, schedule, meters = load_training_state(Path(checkpoint))
        self.optimizer.load_state_dict(optimizer)
        self.lr_scheduler.load_state_dict(schedule)
        self.meters = Meters(**meters)  # type: ignore[arg-type]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random_states(Path(checkpoint))


class _StepClock(TrainerCallback):  # type: ignore[misc]
    """Measures the time in steps. It is registered first, so the time that other callbacks take is not counted."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()
        self.trainer.step_loss = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock and add the time to the meters."""
        self.trainer.meters.seconds += time.perf_counter() - self.started
