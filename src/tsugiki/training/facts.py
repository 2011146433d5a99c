"""What is known of a run's model before its weights are loaded: shapes, the dtype of the base, and the memory.

On a processor that the run has alone, the cost of a few blocks is measured (see `training.cost`), unless the
model is small. The dtype is int8 where it is clearly faster and the settings leave it open, and blocks are computed
again in the backward pass if their activations do not fit in the memory otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.resolve import load_config, loading_errors
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import format_gigabytes
from tsugiki.language import _
from tsugiki.model.meta import meta_model
from tsugiki.training.config import RunConfig
from tsugiki.training.packing import tokens_of_row
from tsugiki.training.record import RunRecord

SMALL_MODEL = 50_000_000
"""Models with fewer parameters are not measured before a run, neither their speed nor their memory."""


@dataclass(frozen=True)
class Shapes:
    """The model of a run without its weights."""

    config: PretrainedConfig
    model: PreTrainedModel
    """The model on torch's meta device, not grafted."""
    parameters: int
    """Number of parameters."""
    row_tokens: int
    """Tokens of a row of the run."""


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


def find_shapes(config: RunConfig, shapes: PretrainedConfig | None = None) -> Shapes:
    """Return the shapes of a run's model; `shapes` is the config of the model, which is read if it is None."""
    shapes = shapes or load_config(config.model)
    with loading_errors(config.model):
        model = meta_model(shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shapes(shapes, model, parameters, tokens_of_row(model, config.block_size, config.virtual_tokens))


def load_dtype(config: RunConfig, device: torch.device | None = None) -> BaseDtype:
    """Return the dtype in which the run loads its base model.

    If `device` is None, it computes on this machine's accelerator, or on its processor if it has none.
    """
    if config.base_dtype is not None:
        return config.base_dtype
    return "fp32" if config.trains_base_parameters() else preferred_compute_dtype(device)


def given_facts(config: RunConfig, record: RunRecord, device: torch.device) -> Facts:
    """Return what the settings say, or what a run had found before it was interrupted."""
    micro_batch = config.micro_batch_size or record.micro_batch_size
    dtype: BaseDtype = config.base_dtype or record.resolved_settings.get("base_dtype") or load_dtype(config, device)
    return Facts(dtype, record.recomputed_blocks or 0, record.base_dtype_seconds, micro_batch)


def measured_facts(config: RunConfig, given: Facts, is_resumed: bool) -> Facts:
    """Return the facts of a run that has a processor alone; a run that is resumed keeps the dtype of its base."""
    try:
        shapes = find_shapes(config)
    except TsugikiError:  # the run itself reports it
        return given
    if shapes.parameters < SMALL_MODEL:
        return given
    from tsugiki.training.dtype_speed import faster_dtype, leaves_dtype_open, seconds_of_dtypes
    from tsugiki.training.plan import plan_memory

    facts = given
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
            "base in int8: a sample of it trains {gain:.1f} times as fast here as in bf16 (--base-dtype bf16 turns "
            "this off)"
        ).format(gain=facts.dtype_seconds["bf16"] / facts.dtype_seconds["int8"])
    if facts.memory is None:
        return
    need, free = format_gigabytes(facts.memory.peak), format_gigabytes(facts.memory.available)
    if not facts.memory.fits:
        yield _(
            "memory: this run needs about {need}, and {free} are free; `tsugiki plan` shows what fits, and --fit "
            "takes it"
        ).format(need=need, free=free)
    elif facts.memory.recomputed_blocks and facts.memory.is_automatic:
        yield _(
            "memory: about {need} of {free}; the activations of {count} blocks are computed again in the backward "
            "pass, because all of them do not fit"
        ).format(need=need, free=free, count=facts.memory.recomputed_blocks)
