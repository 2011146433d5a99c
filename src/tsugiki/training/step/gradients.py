"""The loss of an optimiser step and its gradients, over all rows of the step and all processes.

    trained parameters, float32 ──> the model, bf16 or fp32 ──> hidden states ──> loss in chunks (no full logits)
          ^                                                        │
          └── one buffer <── summed over processes <── summed over micro-batches: one after another on an
              of gradients   once per step             accelerator, one in each thread on a processor

The gradients of all trained parameters are parts of one buffer, whose last numbers are a request to end the run, the
loss, and what the loss reports besides. So several processes need only one reduction for each optimiser step. For an
adapter, it takes megabytes.

In full fine-tuning with bf16 or fp16, a copy of the model in this dtype computes. `torch.autocast`, which casts weights
and activations during the forward pass, was slower. If an adapter trains, the frozen base itself has this dtype.

A model that computes in float16 gets a loss that is multiplied by a scale, so that small gradients do not become 0.
`training.step.loop` divides the gradients by it.

If the weights of the model are in shards (see `training.model.sharding`), torch reduces the gradients of full
fine-tuning, and casts the weights that it gathers to bfloat16.

The dropout masks of each row are drawn from a generator that is seeded by the seed of the run, the step, and the row's
place in the step. So neither the size of micro-batches, nor the number of processes, nor an interruption changes them.
(Layers that do not see whole rows, such as experts, draw one mask for a micro-batch.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import StepBatches
from tsugiki.errors import TsugikiError
from tsugiki.fast.masks import masks_from
from tsugiki.language import _
from tsugiki.model.inference import seeded
from tsugiki.training.data.micro_batches import MicroBatch, MicroBatches
from tsugiki.training.model.sharding import is_sharded, is_split
from tsugiki.training.step.text_loss import StepLoss, TextLoss, derived_seed

_Result: TypeAlias = tuple[Tensor, Tensor | None, Sequence[Tensor | None]]
"""Loss, figures, and the gradient of each weight (None: the loss does not depend on it)."""
Found = TypeVar("Found")


class Gradients:
    """Computes the gradients of optimiser steps into the `.grad` of a model's trained parameters."""

    def __init__(
        self,
        model: PreTrainedModel,
        computing: PreTrainedModel,
        batches: StepBatches,
        accelerator: Accelerator,
        micro_batch_size: int | None = None,
        base_dropout: bool = False,
        tokens_at_once: int = 0,
        loss: StepLoss | None = None,
    ) -> None:
        """Create it; the parameters of `model` with `requires_grad` train, on the accelerator's device.

        `computing` is the model that computes: `model` itself, or a copy in another dtype, into which the parameters
        are copied at every step. Dropout inside the base (`base_dropout`) uses torch's global random generator, so its
        rows are computed one by one; `micro_batch_size` and `tokens_at_once` are as in `MicroBatches`. A step minimises
        `loss` (None: the cross-entropy of texts).
        """
        self.model, self.computing, self.accelerator = model, computing, accelerator
        self.loss: StepLoss = TextLoss() if loss is None else loss
        self.base_dropout = base_dropout
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.copies = [weight for weight in computing.parameters() if weight.requires_grad]
        self.sharded = is_sharded(model)
        self.reduced_by_torch = any(map(is_split, self.weights))
        self.buffer = _assign_gradients(self.weights, accelerator.device, 2 + self.loss.figures)
        self.results = self.buffer[-2 - self.loss.figures :]
        half = any(weight.dtype == torch.float16 for weight in computing.parameters())
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=half)
        self.scaler.scale(self.results[1])  # creates its tensors here, because several threads must not
        self.micro_batches = MicroBatches(
            computing, batches, accelerator, micro_batch_size, base_dropout, self.sharded, tokens_at_once
        )

    @property
    def batches(self) -> StepBatches:
        """The rows of every step."""
        return self.micro_batches.batches

    def step(self, step: int, stop: bool = False) -> Tensor:
        """Compute the gradients of an optimiser step, whose number is from 0.

        `stop`: this process requests that the run ends after the step. Returns a tensor on the device: how many
        processes request the end of the run, the mean loss of all processes (of texts: per target token, in nats), and
        the figures of the loss.
        """
        self.buffer.zero_()
        self.results[0] = float(stop)
        if self.reduced_by_torch:
            for weight in self.weights:
                weight.grad = None
        self._update_copies()
        self.loss.prepare(self.computing, step)
        count = self.count(step)
        for loss, figures, gradients in self.micro_batches.compute(step, partial(self._gradients, step, count)):
            self._add(gradients)
            self.results[1] += loss
            if figures is not None:
                self.results[2:] += figures
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(self.buffer)
        return self.results.clone()

    def count(self, step: int) -> int:
        """Return by what the loss of a step is divided: target tokens, or what another loss counts."""
        return self.loss.count(self.batches, self.batches.rows(step))

    def forward(
        self, step: int, function: Callable[[PreTrainedModel, dict[str, Any], list[int]], Found]
    ) -> Iterator[tuple[list[int], Found]]:
        """Yield some rows of a step and the function's result for them, computed like a step, without gradients.

        The function gets the model that computes, its arguments with the labels, and the rows. Each process yields the
        results for its own rows.
        """
        self._update_copies()

        @torch.no_grad()
        def compute(micro: MicroBatch) -> tuple[list[int], Found]:
            return micro.rows, function(self.computing, self.micro_batches.arguments(micro), micro.rows)

        yield from self.micro_batches.compute(step, compute)

    def _update_copies(self) -> None:
        """Copy the trained parameters into the model that computes, and set it to training mode."""
        if self.computing is not self.model:
            with torch.no_grad():
                for copied, weight in zip(self.copies, self.weights, strict=True):
                    copied.copy_(weight)
        self.computing.train()

    def _gradients(self, step: int, count: int, micro: MicroBatch) -> _Result:
        """Return the loss of some rows, its figures and its gradients."""
        seeds = [derived_seed(self.batches.seed, step, place) for place in micro.places]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        batch = self.micro_batches.arguments(micro)
        with seeded(seeds[0]) if self.base_dropout else nullcontext(), masks_from(*generators):
            loss, figures = self.loss(self.computing, batch, micro.rows, count)
        if self.reduced_by_torch:
            (loss * self.accelerator.num_processes).backward()  # torch adds the mean over the processes to `.grad`
            return loss.detach(), figures, [None] * len(self.weights)
        gradients = torch.autograd.grad(self.scaler.scale(loss), self.copies, allow_unused=True)
        return loss.detach(), figures, gradients

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is not None:
                assert weight.grad is not None
                weight.grad += gradient


def not_finite(loss: float, step: int, rate: float, is_scaled: bool) -> TsugikiError:
    """Return the error for a loss that is infinite or NaN; `is_scaled`: gradients are in float16."""
    message = _(
        "the loss is {loss} at step {step}: start again with a lower learning rate than {rate}, or with auto; what was "
        "learned before is in the checkpoints"
    )
    if is_scaled:
        message = _(
            "the loss is {loss} at step {step}: start again with a lower learning rate than {rate}, or in fp32 "
            "(base_dtype, compute_dtype); what was learned before is in the checkpoints"
        )
    return TsugikiError(message.format(loss=loss, step=step, rate=rate))


def overflow(step: int) -> TsugikiError:
    """Return the error for gradients that are too large for float16 even with the smallest scale."""
    return TsugikiError(
        "fp16 cannot hold the gradients at step {step}: compute in fp32 (base_dtype, compute_dtype)", step=step
    )


def _assign_gradients(weights: Sequence[Tensor], device: torch.device, more: int) -> Tensor:
    """Make the gradients of weights views of a new buffer, which has `more` numbers at its end, and return it.

    Weights that are split over processes are left out: torch allocates and reduces their gradients.
    """
    if not weights:
        raise TsugikiError("nothing trains: no parameter of the model has requires_grad")
    whole = [weight for weight in weights if not is_split(weight)]
    buffer = torch.zeros(sum(weight.numel() for weight in whole) + more, dtype=weights[0].dtype, device=device)
    start = 0
    for weight in whole:
        weight.grad = buffer[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return buffer
