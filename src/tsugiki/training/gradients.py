"""The loss of an optimiser step and its gradients, over all rows of the step and all processes.

    trained parameters, float32 ──> the model, bf16 or fp32 ──> hidden states ──> loss in chunks (no full logits)
          ^                                                        │
          └── one buffer <── summed over processes <── summed over micro-batches: one after another on an
              of gradients   once per step             accelerator, one in each thread on a processor

The gradients of all trained parameters are parts of one buffer, whose last numbers are the loss and a request to end
the run. So several processes need only one reduction for each optimiser step. For an adapter, it takes megabytes.

In full fine-tuning with bf16 or fp16, a copy of the model in this dtype computes. `torch.autocast`, which casts weights
and activations during the forward pass, was slower. If an adapter trains, the frozen base itself has this dtype.

A model that computes in float16 gets a loss that is multiplied by a scale, so that small gradients do not become 0.
`training.loop` divides the gradients by it.

If the weights of the model are in shards (see `training.sharding`), all processes compute equally many micro-batches,
one after another. In full fine-tuning, torch then reduces the gradients, and casts the weights that it gathers to
bfloat16.

The dropout masks of each row are drawn from a generator that is seeded by the seed of the run, the step, and the row's
place in the step. So neither the size of micro-batches, nor the number of processes, nor an interruption changes them.
(Layers that do not see whole rows, such as experts, draw one mask for a micro-batch.)

If documents cannot share a row, a row is as long as its document. A short row alone is slow on a processor, where
matrix products are efficient only from some hundred tokens on, so short rows of similar lengths are computed at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from tsugiki.data.blocks import StepBatches, of_similar_length
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import FLASH, flash_arguments, packed_masks, takes_packed_masks
from tsugiki.fast.forward import has_chunked_loss
from tsugiki.fast.masks import masks_from
from tsugiki.language import _
from tsugiki.model.context import IGNORE_INDEX, rope_depends_on_length
from tsugiki.model.inference import seeded
from tsugiki.training.sharding import is_sharded, is_split
from tsugiki.training.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUT_OF_MEMORY_OF_MPS = ("MPS backend out of memory", "Invalid buffer size")


@dataclass(frozen=True)
class _MicroBatch:
    """Rows of a step that are computed at once."""

    places: list[int]
    """The positions of the rows in the step."""
    rows: list[int]
    """The indices of the rows in the data."""
    learns: bool = True
    """False: no token is in the loss."""


_Result: TypeAlias = tuple[Tensor, Sequence[Tensor | None]]


class Gradients:
    """Computes the gradients of optimiser steps into the `.grad` of a model's trained parameters."""

    def __init__(
        self,
        model: "PreTrainedModel",
        computing: "PreTrainedModel",
        batches: StepBatches,
        accelerator: Accelerator,
        micro_batch_size: int | None = None,
        base_dropout: bool = False,
        tokens_at_once: int = 0,
    ) -> None:
        """Create it; the parameters of `model` with `requires_grad` train, on the accelerator's device.

        Args:
            computing: the model that computes: `model` itself, or a copy in another dtype, into which the parameters
                are copied at every step.
            micro_batch_size: rows that are computed at once; None: all rows of a step, divided by the number of
                processes.
            base_dropout: dropout inside the base is active. It uses torch's global random generator, so the rows are
                computed one after another.
            tokens_at_once: compute more than `micro_batch_size` rows at once if they have similar lengths and at most
                this many tokens together, padding included. 0: never.
        """
        self.model, self.computing, self.batches, self.accelerator = model, computing, batches, accelerator
        self.base_dropout = base_dropout
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.copies = [weight for weight in computing.parameters() if weight.requires_grad]
        self.sharded = is_sharded(model)
        self.reduced_by_torch = any(map(is_split, self.weights))
        self.buffer = _assign_gradients(self.weights, accelerator.device)
        half = any(weight.dtype == torch.float16 for weight in computing.parameters())
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=half)
        self.scaler.scale(self.buffer[-1])  # creates its tensors here, because several threads must not
        # Rotary frequencies that depend on a row's length are in the model while the row is computed.
        alone = base_dropout or rope_depends_on_length(computing)
        self._dealt_rows = 1 if alone else micro_batch_size or batches.batch_size
        self.micro_batch_size = self._dealt_rows  # fewer after memory has run out in this process
        self._in_threads = accelerator.device.type == "cpu" and not alone and not self.sharded
        self.tokens_at_once = tokens_at_once if self._in_threads else 0
        by_positions = batches.collate.masking == "position_ids"
        self._by_flash = by_positions and computing.config.get_text_config()._attn_implementation == FLASH
        self._passes_masks = (
            accelerator.device.type != "cpu" and by_positions and takes_packed_masks(computing.base_model)
        )

    def step(self, step: int, stop: bool = False) -> Tensor:
        """Compute the gradients of an optimiser step, whose number is from 0.

        `stop`: this process requests that the run ends after the step. Returns a tensor [2] on the device: how many
        processes request the end of the run, and the mean loss per target token of all processes, in nats.
        """
        self.buffer.zero_()
        self.buffer[-2] = float(stop)
        if self.reduced_by_torch:
            for weight in self.weights:
                weight.grad = None
        if self.computing is not self.model:
            with torch.no_grad():
                for copied, weight in zip(self.copies, self.weights, strict=True):
                    copied.copy_(weight)
        self.computing.train()
        count = self.batches.target_tokens(step)
        todo = self._share(step)
        # Results come in order, so that no bit of the sum depends on the number of threads.
        tasks = [partial(self._micro_batch, step, count, micro) for micro in todo]
        for loss, gradients in run_in_threads(tasks) if self._in_threads else self._in_order(step, count, todo):
            self._add(loss, gradients)
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(self.buffer)
        return self.buffer[-2:].clone()

    def _in_order(self, step: int, count: int, todo: list[_MicroBatch]) -> Iterator[_Result]:
        """Compute one micro-batch after another. If memory runs out, it is computed again in halves."""
        while todo:
            micro = todo.pop(0)
            result = None
            try:
                result = self._micro_batch(step, count, micro)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(micro, error)
            if result is not None:
                yield result
                continue
            # Only now the traceback, which held the activations, is gone.
            torch.get_device_module(self.accelerator.device).empty_cache()
            todo = [part for whole in (micro, *todo) for part in _split(whole, self.micro_batch_size)]

    def _share(self, step: int) -> list[_MicroBatch]:
        """Return the micro-batches of this process: with n processes, every n-th one of the step.

        So the same rows are computed together on any number of processes, unless there are too few micro-batches for
        all of them.
        """
        rows, processes, index = self.batches.rows(step), self.accelerator.num_processes, self.accelerator.process_index
        whole, size = _MicroBatch(list(range(len(rows))), rows), min(self._dealt_rows, math.ceil(len(rows) / processes))
        if self.tokens_at_once:
            groups = of_similar_length([*map(self.batches.blocks.row_tokens, rows)], self.tokens_at_once, size)
            return [_MicroBatch(places, [rows[place] for place in places]) for places in groups[index::processes]]
        dealt = _split(whole, size)
        mine = [part for micro in dealt[index::processes] for part in _split(micro, self.micro_batch_size)]
        if self.sharded:  # all processes must call the model equally often
            mine += [_MicroBatch([0], rows[:1], learns=False)] * (math.ceil(len(dealt) / processes) - len(mine))
        return mine

    def _micro_batch(self, step: int, count: int, micro: _MicroBatch) -> _Result:
        """Return the loss of some rows and its gradient for each weight (None: the loss does not depend on it)."""
        seeds = [row_seed(self.batches.seed, step, place) for place in micro.places]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        batch = self.batches.batch(micro.rows)
        if not micro.learns:
            batch["labels"].fill_(IGNORE_INDEX)
        batch = self._on_device(batch)
        if self.base_dropout:
            with seeded(seeds[0]), masks_from(*generators):
                loss = self._loss(batch, count)
        else:
            with masks_from(*generators):
                loss = self._loss(batch, count)
        if self.reduced_by_torch:
            (loss * self.accelerator.num_processes).backward()  # torch adds the mean over the processes to `.grad`
            return loss.detach(), [None] * len(self.weights)
        return loss.detach(), torch.autograd.grad(self.scaler.scale(loss), self.copies, allow_unused=True)

    def _loss(self, batch: dict[str, Any], count: int) -> Tensor:
        """Return the cross-entropy summed over the target tokens of a batch, divided by `count`."""
        labels = batch.pop("labels")
        if has_chunked_loss(self.computing):
            chunked: Tensor = self.computing(**batch, labels=labels, num_items_in_batch=count, use_cache=False).loss
            return chunked
        logits = self.computing(**batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = labels[:, 1:].flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum") / count

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Move a batch to the device without waiting for it, and convert a mask to the dtype of the model."""
        device = self.accelerator.device
        arguments: dict[str, Any] = dict(batch)
        if self._by_flash:
            arguments |= flash_arguments(batch["position_ids"])
        for name, tensor in arguments.items():
            if isinstance(tensor, Tensor):
                dtype = self.computing.dtype if tensor.is_floating_point() else None
                on_host = tensor.pin_memory() if device.type == "cuda" else tensor
                arguments[name] = on_host.to(device, dtype, non_blocking=True)
        if self._passes_masks:
            arguments["attention_mask"] = packed_masks(self.computing.base_model, arguments["position_ids"])
        return arguments

    def _add(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is not None:
                assert weight.grad is not None
                weight.grad += gradient
        self.buffer[-1] += loss

    def _halve(self, micro: _MicroBatch, error: RuntimeError) -> None:
        """Compute half as many rows at once from now on.

        This is an error for a single row, and for a sharded model, of which all processes must compute equally many
        micro-batches.
        """
        device = self.accelerator.device
        if self.sharded and len(micro.rows) > 1:  # the other processes would not take part in another call
            raise TsugikiError(
                _(
                    "the memory of {device} does not suffice to train on {count} rows of {block_size} tokens at once: "
                    "set --micro-batch-size to {fewer}"
                ).format(
                    device=device,
                    count=len(micro.rows),
                    block_size=self.batches.blocks.block_size,
                    fewer=len(micro.rows) // 2,
                )
            ) from error
        if len(micro.rows) == 1:
            message = _(
                "the memory of {device} does not suffice to train on a single row of {block_size} tokens: choose a "
                "smaller --block-size, a base of fewer bits (--base-dtype int8 or nf4), or --device cpu"
            )
            raise TsugikiError(message.format(device=device, block_size=self.batches.blocks.block_size)) from error
        self.micro_batch_size = len(micro.rows) // 2


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the memory of an accelerator has run out. On a Mac, only the message of the error says so."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _OUT_OF_MEMORY_OF_MPS)


def row_seed(seed: int, step: int, place: int) -> int:
    """Return the seed (63 bits) of a row's dropout masks from the run's seed, the step, and the row's place in it."""
    return int(np.random.SeedSequence((seed, step, place)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
    message = _("fp16 cannot hold the gradients at step {step}: compute in fp32 (base_dtype, compute_dtype)")
    return TsugikiError(message.format(step=step))


def _assign_gradients(weights: Sequence[Tensor], device: torch.device) -> Tensor:
    """Make the gradients of weights views of a new buffer, which has two more numbers at its end, and return it.

    Weights that are split over processes are left out: torch allocates and reduces their gradients.
    """
    if not weights:
        raise TsugikiError(_("nothing trains: no parameter of the model has requires_grad"))
    whole = [weight for weight in weights if not is_split(weight)]
    buffer = torch.zeros(sum(weight.numel() for weight in whole) + 2, dtype=weights[0].dtype, device=device)
    start = 0
    for weight in whole:
        weight.grad = buffer[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return buffer


def _split(micro: _MicroBatch, size: int) -> list[_MicroBatch]:
    """Divide rows into micro-batches of at most `size` rows."""
    parts = [slice(start, start + size) for start in range(0, len(micro.rows), size)]
    return [_MicroBatch(micro.places[part], micro.rows[part]) for part in parts]
