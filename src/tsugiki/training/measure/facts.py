"""What is known of a run's model before its weights are loaded: shapes, the dtype of the base, and the memory.

On a processor that the run has alone, the cost of a few blocks is measured (see `training.measure.cost`), unless the
model is small. The dtype is int8 where it is clearly faster and the settings leave it open, and blocks are computed
again in the backward pass if their activations do not fit in the memory otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from tsugiki.dtypes import BaseDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import format_gigabytes
from tsugiki.language import _
from tsugiki.training.measure.memory_plan import MemoryPlan
from tsugiki.training.measure.shapes import SMALL_MODEL, Shapes, find_shapes
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.settings.config import RunConfig


@dataclass(frozen=True)
class Facts:
    """The dtype of a run's base, and the memory that it needs."""

    dtype: BaseDtype
    """The dtype in which the base is loaded."""
    recomputed_blocks: int = 0
    """Blocks whose activations are computed again in the backward pass if `recompute` is auto."""
    dtype_seconds: dict[str, float] | None = None
    """Dtype -> CPU seconds of some tokens, if the dtype was chosen by measuring."""
    micro_batch_size: int | None = None
    """Rows that are computed at once, if this was set, now or before the run was interrupted."""
    memory: MemoryPlan | None = None
    """None for a small model, or if it was not planned."""
    shapes: Shapes | None = None
    """The shapes of the model, if it can be measured; None for a small model."""


def given_facts(config: RunConfig, record: RunRecord, device: torch.device) -> Facts:
    """Return what the settings say, or a run that was interrupted had found; else the usual dtype of the device."""
    micro_batch = config.micro_batch_size or record.micro_batch_size
    dtype: BaseDtype = config.base_dtype or record.resolved_settings.get("base_dtype") or load_dtype(config, device)
    return Facts(dtype, record.recomputed_blocks or 0, record.base_dtype_seconds, micro_batch)


def measured_facts(config: RunConfig, given: Facts, is_resumed: bool) -> Facts:
    """Return the facts of a run that has a processor alone; a run that is resumed keeps the dtype of its base."""
    try:
        shapes = find_shapes(config.model, config.block_size, config.virtual_tokens)
    except TsugikiError:  # the run itself reports it
        return given
    if shapes.parameters < SMALL_MODEL:
        return given
    from tsugiki.training.measure.dtype_speed import faster_dtype, leaves_dtype_open, seconds_of_dtypes
    from tsugiki.training.measure.memory_plan import plan_memory

    facts = replace(given, shapes=shapes)
    if not is_resumed and leaves_dtype_open(config) and (seconds := seconds_of_dtypes(config, shapes)) is not None:
        facts = replace(facts, dtype=faster_dtype(seconds), dtype_seconds=seconds)
    memory = plan_memory(config, shapes, facts.dtype, facts.micro_batch_size, given.recomputed_blocks)
    return facts if memory is None else replace(facts, memory=memory, recomputed_blocks=memory.recomputed_blocks)


def fact_notes(facts: Facts) -> Iterator[str]:
    """Yield notes for the user before the run starts.

    The base is in 8 bits because it is faster, the memory does not suffice, or blocks are recomputed.
    """
    if facts.dtype_seconds is not None and facts.dtype == "int8":
        yield _(
            "base in int8: a sample of it trains {gain:.1f} times as fast here as in bf16 ({flag:base_dtype bf16} "
            "turns this off)",
            gain=facts.dtype_seconds["bf16"] / facts.dtype_seconds["int8"],
        )
    if facts.memory is None:
        return
    need, free = format_gigabytes(facts.memory.peak), format_gigabytes(facts.memory.available)
    if not facts.memory.fits:
        yield _(
            "memory: this run needs about {need}, and {free} are free; `tsugiki plan` shows what fits, and {flag:fit} "
            "takes it",
            need=need,
            free=free,
        )
    elif facts.memory.recomputed_blocks and facts.memory.is_automatic:
        yield _(
            "memory: about {need} of {free}; the activations of {count} blocks are computed again in the backward "
            "pass, because all of them do not fit",
            need=need,
            free=free,
            count=facts.memory.recomputed_blocks,
        )


def load_dtype(config: RunConfig, device: torch.device | None = None) -> BaseDtype:
    """Return the dtype in which the run loads its base model.

    If `device` is None, it computes on this machine's accelerator, or on its processor if it has none.
    """
    if config.base_dtype is not None:
        return config.base_dtype
    return "fp32" if config.trains_base_parameters() else preferred_compute_dtype(device)
