"""Deal the rows of an optimiser step out to processes and threads, and compute a function of each micro-batch.

With n processes, each computes every n-th micro-batch of a step. On a processor they are computed in parallel, each in
a thread of its own; on an accelerator, or where the model cannot, one after another. If the memory of an accelerator
runs out, a micro-batch is computed again in halves.

If the weights of the model are in shards (see `training.model.sharding`), all processes compute equally many
micro-batches, one after another.

If documents cannot share a row, a row is as long as its document. A short row alone is slow on a processor, where
matrix products are efficient only from some hundred tokens on, so short rows of similar lengths are computed at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import StepBatches, of_similar_length
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import FLASH, flash_arguments, packed_masks, takes_packed_masks
from tsugiki.language import _
from tsugiki.model.context import IGNORE_INDEX, rope_depends_on_length
from tsugiki.model.linear import to_device
from tsugiki.training.tools.processes import run_in_threads

Result = TypeVar("Result")

_OUT_OF_MEMORY_OF_MPS = ("MPS backend out of memory", "Invalid buffer size")


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a step that are computed at once."""

    places: list[int]
    """The positions of the rows in the step."""
    rows: list[int]
    """The indices of the rows in the data."""
    learns: bool = True
    """False: no token is in the loss."""


class MicroBatches:
    """The micro-batches of every optimiser step, for one process."""

    def __init__(
        self,
        model: PreTrainedModel,
        batches: StepBatches,
        accelerator: Accelerator,
        size: int | None = None,
        alone: bool = False,
        sharded: bool = False,
        tokens_at_once: int = 0,
    ) -> None:
        """Create them for the model that computes, on the accelerator's device.

        `size` rows are computed at once (None: all rows of a step, divided by the number of processes), or more if they
        have similar lengths and at most `tokens_at_once` tokens together, padding included; with `alone`, one by one.
        """
        self.model, self.batches, self.accelerator, self.sharded = model, batches, accelerator, sharded
        # Rotary frequencies that depend on a row's length are in the model while the row is computed.
        alone = alone or rope_depends_on_length(model)
        self._dealt_rows = 1 if alone else size or batches.batch_size
        self.size = self._dealt_rows  # fewer after memory has run out in this process
        self._in_threads = accelerator.device.type == "cpu" and not alone and not sharded
        self.tokens_at_once = tokens_at_once if self._in_threads else 0
        by_positions = batches.collate.masking == "position_ids"
        self._by_flash = by_positions and model.config.get_text_config()._attn_implementation == FLASH
        self._passes_masks = accelerator.device.type != "cpu" and by_positions and takes_packed_masks(model.base_model)

    def compute(self, step: int, function: Callable[[MicroBatch], Result]) -> Iterator[Result]:
        """Yield the function's result for each micro-batch of a step that this process computes.

        Results come in order, so that no bit of their sum depends on the number of threads.
        """
        todo = self._share(step)
        if self._in_threads:
            yield from run_in_threads([partial(function, micro) for micro in todo])
        else:
            yield from self._in_order(todo, function)

    def arguments(self, micro: MicroBatch) -> dict[str, Any]:
        """Return the arguments of the model and the labels of a micro-batch, on the device."""
        batch = self.batches.batch(micro.rows)
        if not micro.learns:
            batch["labels"].fill_(IGNORE_INDEX)
        return self._on_device(batch)

    def _in_order(self, todo: list[MicroBatch], function: Callable[[MicroBatch], Result]) -> Iterator[Result]:
        """Compute one micro-batch after another. If memory runs out, it is computed again in halves."""
        while todo:
            micro = todo.pop(0)
            result = None
            try:
                result = function(micro)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(micro, error)
            if result is not None:
                yield result
                continue
            # Only now the traceback, which held the activations, is gone.
            torch.get_device_module(self.accelerator.device).empty_cache()
            todo = [part for whole in (micro, *todo) for part in _split(whole, self.size)]

    def _share(self, step: int) -> list[MicroBatch]:
        """Return the micro-batches of this process: with n processes, every n-th one of the step.

        So the same rows are computed together on any number of processes, unless there are too few micro-batches for
        all of them.
        """
        rows, processes, index = self.batches.rows(step), self.accelerator.num_processes, self.accelerator.process_index
        whole, size = MicroBatch(list(range(len(rows))), rows), min(self._dealt_rows, math.ceil(len(rows) / processes))
        if self.tokens_at_once:
            groups = of_similar_length([*map(self.batches.blocks.row_tokens, rows)], self.tokens_at_once, size)
            return [MicroBatch(places, [rows[place] for place in places]) for places in groups[index::processes]]
        dealt = _split(whole, size)
        mine = [part for micro in dealt[index::processes] for part in _split(micro, self.size)]
        if self.sharded:  # all processes must call the model equally often
            mine += [MicroBatch([0], rows[:1], learns=False)] * (math.ceil(len(dealt) / processes) - len(mine))
        return mine

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Move a batch to the device, and convert a mask to the dtype of the model."""
        device = self.accelerator.device
        arguments: dict[str, Any] = dict(batch)
        if self._by_flash:
            arguments |= flash_arguments(batch["position_ids"])
        for name, tensor in arguments.items():
            if isinstance(tensor, Tensor):
                dtype = self.model.dtype if tensor.is_floating_point() else None
                arguments[name] = to_device(tensor, device, dtype)
        if self._passes_masks:
            arguments["attention_mask"] = packed_masks(self.model.base_model, arguments["position_ids"])
        return arguments

    def _halve(self, micro: MicroBatch, error: RuntimeError) -> None:
        """Compute half as many rows at once from now on.

        This is an error for a single row, and for a sharded model, of which all processes must compute equally many
        micro-batches.
        """
        rows, block_size = len(micro.rows), self.batches.blocks.block_size
        if self.sharded and rows > 1:  # the other processes would not take part in another call
            message = _(
                "the memory of {device} does not suffice to train on {count} rows of {block_size} tokens at once: "
                "set {flag:micro_batch_size} to {fewer}"
            )
        elif rows == 1:
            message = _(
                "the memory of {device} does not suffice to train on a single row of {block_size} tokens: choose a "
                "smaller {flag:block_size}, a base of fewer bits ({flag:base_dtype int8} or nf4), or {flag:device cpu}"
            )
        else:
            self.size = rows // 2
            return
        values = {"device": self.accelerator.device, "count": rows, "block_size": block_size, "fewer": rows // 2}
        raise TsugikiError(message.format(**values)) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the memory of an accelerator has run out. On a Mac, only the message of the error says so."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _OUT_OF_MEMORY_OF_MPS)


def _split(micro: MicroBatch, size: int) -> list[MicroBatch]:
    """Divide rows into micro-batches of at most `size` rows."""
    parts = [slice(start, start + size) for start in range(0, len(micro.rows), size)]
    return [MicroBatch(micro.places[part], micro.rows[part]) for part in parts]
