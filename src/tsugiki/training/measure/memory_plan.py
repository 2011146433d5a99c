"""How much memory a run needs, planned before it starts."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError
from tsugiki.methods.table import METHODS
from tsugiki.model.context import text_config
from tsugiki.model.inference import decoder_blocks
from tsugiki.training.measure.cost import need_of
from tsugiki.training.measure.shapes import Shapes, rows_of_micro_batch
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.tools import memory
from tsugiki.training.tools.processes import planned_compute_dtype


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a run as planned before its start."""

    peak: int
    """Bytes."""
    recomputed_blocks: int
    is_automatic: bool
    """Whether the settings leave the number of recomputed blocks open."""
    fits: bool
    available: int
    """Bytes that the run can use."""


_PROCESS, _SURELY_ENOUGH = 1_000_000_000, 0.8
"""Bytes of a process without a model, and the share of the available memory up to which a run is not planned."""
_SPARE = 0.95
"""The share of the available memory that a run may take; other programs need some, and the estimate is not exact."""


def plan_memory(
    config: RunConfig, shapes: Shapes, dtype: BaseDtype, micro_batch_size: int | None = None, before: int = 0
) -> MemoryPlan | None:
    """Plan the memory of a run on a processor that loads its base in `dtype`; None if it cannot or need not be planned.

    `before` blocks were recomputed before the run was interrupted; `recompute` auto recomputes at least these.
    """
    device = torch.device("cpu")
    available = memory_for_process(device)
    if available is None:
        return None
    in_step = config.batch_size if config.batch_size != AUTO else 2 * torch.get_num_threads()
    size = micro_batch_size or micro_batch_sizes(config, device, shapes.row_tokens, in_step)[-1]
    if surely_fits(config, shapes, size):
        return None
    try:
        need = need_of(config, shapes, computing_dtype(config, device, dtype), device, size, in_step)
    except TsugikiError:  # the run itself reports the error, or the model is of a kind that cannot be planned
        return None
    limit = memory_limit(available)
    automatic = 0 if config.virtual_tokens else max(before, need.recomputed(limit))
    count = {"none": 0, "blocks": need.blocks, AUTO: automatic}
    peak = need.peak(count[config.recompute])
    return MemoryPlan(peak, count[config.recompute], config.recompute == AUTO, peak <= limit, available)


def surely_fits(config: RunConfig, shapes: Shapes, rows: int) -> bool:
    """Return whether the training of an adapter with `rows` rows in each thread fits, by `most_bytes`."""
    available = memory_for_process(torch.device("cpu"))
    most = _PROCESS + most_bytes(shapes, getattr(config.adapter_config, "r", 0), torch.get_num_threads(), rows)
    return available is not None and not config.trains_base_parameters() and most <= _SURELY_ENOUGH * available


def most_bytes(shapes: Shapes, rank: int, threads: int, rows: int) -> int:
    """Return an upper bound, in bytes, of what the training of an adapter needs besides the process.

    It follows from the shapes alone, whereas a plan measures blocks, which takes seconds. All is counted in float32:
    the base twice, because loading may copy it; for `rows` rows in each thread, the input and the output of every
    matrix, the probabilities of attention, the logits and their gradient; and factors of `rank` for every matrix, with
    their gradients and AdamW's averages. Plans that were measured are a fifth to three quarters of it.
    """
    text: Any = text_config(shapes.model)
    tokens = threads * rows * shapes.row_tokens
    matrices = [tuple(parameter.shape) for parameter in shapes.model.parameters() if parameter.ndim > 1]
    sides: int = sum(math.prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in matrices)
    seen = len(decoder_blocks(shapes.model)) * int(getattr(text, "num_attention_heads", 1)) * shapes.row_tokens
    of_token = 4 * (sides + seen + 3 * int(text.vocab_size))
    return 8 * shapes.parameters + tokens * of_token + 4 * (4 + threads) * rank * sides


def computing_dtype(config: RunConfig, device: torch.device, dtype: BaseDtype) -> BaseDtype:
    """Return the dtype that a run computes in, if it loads its base in `dtype`."""
    if METHODS[config.method].trains_adapter:
        return dtype
    return config.compute_dtype or planned_compute_dtype(device)


def micro_batch_sizes(config: RunConfig, device: torch.device, tokens: int, in_step: int) -> list[int]:
    """Return the numbers of rows to compute at once, in ascending order."""
    if config.micro_batch_size is not None:
        return [config.micro_batch_size]
    usual = rows_of_micro_batch(tokens, METHODS[config.method].trains_adapter, device.type)
    more = {math.ceil(math.sqrt(in_step)), in_step} if device.type != "cpu" else set()
    return sorted({1, min(usual, in_step)} | more)


def memory_limit(available: int) -> int:
    """Return the bytes that a run may take of those that are available."""
    return round(_SPARE * available)


def memory_for_process(device: torch.device) -> int | None:
    """Return the bytes of a device's memory that are free or that this process uses; None if they are not reported."""
    free = memory.available(device)
    return None if free is None else free + (memory.resident(device) or 0)
