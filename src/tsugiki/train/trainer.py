"""transformers' Trainer, with three things of ours: the loss's weighting, the meters, and the checkpoints.

Stock Trainer saves the whole grafted base, under names that `from_pretrained` then re-initialises without an
error, and pickles the optimiser. Everything that it saves or loads is replaced here (see `checkpoint`). What of a
model is saved, and how gradients are found where not by Trainer, its `Parts` say.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tsugiki.adapters.format import refill_adapter, save_adapter
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masking import Collator, DocumentMasking
from tsugiki.labels import IGNORE_INDEX
from tsugiki.train.checkpoint import (
    keep_newest,
    load_training_state,
    restore_random_states,
    save_training_state,
)
from tsugiki.train.gradients import Gradients

_KEPT = 2


@dataclass
class Meters:
    """Running sums over all steps so far; they go into checkpoints."""

    nll: float = 0.0
    """Summed loss of all learned tokens, in nats."""
    tokens: int = 0
    seconds: float = 0.0
    """Time spent in steps, without evaluation, samples and saving."""

    @property
    def loss(self) -> float:
        """Mean loss of a token, over the whole run."""
        return self.nll / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Learned tokens a second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def token_weighted_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """Cross-entropy of each learned token over the number of learned tokens in the whole optimiser step.

    So every token weighs the same, however the rows are spread over batches and accumulation.

    Args:
        outputs: of a causal language model; `logits` [rows, length, vocabulary].
        labels: [rows, length], not shifted; `IGNORE_INDEX` where nothing is learned.
        num_items_in_batch: learned tokens of the step, all accumulated batches together.
    """
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum") / num_items_in_batch


@dataclass(frozen=True)
class Parts:
    """What the trainer leaves to others; by default, an adapter is stored and Trainer finds its gradients."""

    save: Callable[[nn.Module, Path], None] = save_adapter
    refill: Callable[[nn.Module, Path], None] = refill_adapter
    gradients: Gradients | None = None
    optimizer: torch.optim.Optimizer | None = None
    """Trainer's AdamW where there is none."""


_ADAPTER = Parts()


class RunTrainer(Trainer):  # type: ignore[misc]
    """Trains what of a model has `requires_grad`, such as the active adapter, on blocks of tokens."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        blocks: Blocks,
        isolation: DocumentMasking,
        parts: Parts = _ADAPTER,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=blocks,
            data_collator=Collator(isolation, next(model.parameters()).dtype),
            compute_loss_func=token_weighted_loss,
            optimizers=(parts.optimizer, None),
        )
        self.parts = parts
        # Causal models of transformers predict the next token, whatever name their loss goes by.
        self._loss_shifts_labels = True
        self.meters = Meters()
        self.step_loss = 0.0
        """Loss of the optimiser step at hand, in nats a token."""
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepClock(self))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One batch forward and backward; counts what it learned.

        Raises:
            TsugikiError: the loss is not finite.
        """
        # Several processes, or several devices in one, leave their gradients to torch to gather.
        alone = self.accelerator.num_processes == 1 and self.args.n_gpu <= 1
        loss: Tensor = (
            self.parts.gradients.add(self._prepare_inputs(inputs), num_items_in_batch)
            if self.parts.gradients and alone
            else super().training_step(model, inputs, num_items_in_batch)
        )
        value = float(loss)
        if not torch.isfinite(loss):
            raise TsugikiError(
                f"the loss is {value} at step {self.state.global_step + 1}: lower the learning rate "
                f"({self.args.learning_rate}) and start anew, or go on from the last checkpoint with --resume"
            )
        self.step_loss += value
        self.meters.nll += value * float(num_items_in_batch)
        self.meters.tokens += int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains: of a grafted model the adapter, not the base."""
        if self.args.should_save:
            self.parts.save(self.accelerator.unwrap_model(self.model), Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.args.should_save:
            return
        root = Path(str(self.args.output_dir))
        part = root / f".checkpoint-{self.state.global_step}.part"
        part.mkdir(parents=True, exist_ok=True)
        self.save_model(str(part))
        save_training_state(part, self.optimizer.state_dict(), self.lr_scheduler.state_dict(), asdict(self.meters))
        self.state.save_to_json(str(part / "trainer_state.json"))
        os.replace(part, root / f"checkpoint-{self.state.global_step}")
        keep_newest(root, _KEPT)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.parts.refill(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))

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
    """Times the steps alone; registered first, so that what others do after a step is not counted."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer
        self.began = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()
        self.trainer.step_loss = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop it."""
        self.trainer.meters.seconds += time.perf_counter() - self.began
