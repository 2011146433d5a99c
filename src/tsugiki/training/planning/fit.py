"""Apply a plan to a run: record the planned memory, recompute blocks, warn, or choose the fastest option that fits."""

from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.base.model_config import load_config, loading_errors
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import format_gigabytes
from tsugiki.language import _
from tsugiki.methods.table import METHODS
from tsugiki.model.meta import meta_model
from tsugiki.training.config import AUTO, RunConfig
from tsugiki.training.packing import tokens_of_row
from tsugiki.training.planning.base_dtype import SMALL_MODEL
from tsugiki.training.planning.need import need_of
from tsugiki.training.planning.plan import (
    SPARE,
    Option,
    Plan,
    can_recompute,
    computing_dtype,
    micro_batch_sizes,
    total_memory,
)


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a run as planned before its start."""

    peak: int
    """Bytes."""
    recomputed_blocks: int
    fits: bool
    available: int
    """Bytes that the run can use."""


def plan_memory(config: RunConfig, before: int = 0) -> MemoryPlan | None:
    """Plan the memory of a run on a processor; None for a small model, or if the memory cannot be planned.

    Args:
        config: the settings of the run.
        before: blocks that were recomputed before the run was interrupted; `recompute` auto recomputes at least these.
    """
    device = torch.device("cpu")
    available = total_memory(device)
    try:
        shapes = load_config(config.model)
        with loading_errors(config.model):
            model = meta_model(shapes)
        if available is None or sum(p.numel() for p in model.parameters()) < SMALL_MODEL:
            return None
        tokens = tokens_of_row(config, model)
        in_step = config.batch_size if config.batch_size != AUTO else 2 * torch.get_num_threads()
        size = micro_batch_sizes(config, device, tokens, in_step)[-1]
        need = need_of(config, shapes, computing_dtype(config, shapes, device), device, size, in_step)
    except TsugikiError:  # the run itself reports the error, or the model is of a kind that cannot be planned
        return None
    limit = round(SPARE * available)
    automatic = max(before, need.recomputed(limit)) if can_recompute(config) else 0
    count = {"none": 0, "blocks": need.blocks, AUTO: automatic}
    peak = need.peak(count[config.recompute])
    return MemoryPlan(peak, count[config.recompute], peak <= limit, available)


def memory_notes(planned: MemoryPlan, config: RunConfig) -> list[str]:
    """Return notes for the user before the run starts: that the memory does not suffice, or blocks are recomputed."""
    need, free = format_gigabytes(planned.peak), format_gigabytes(planned.available)
    if not planned.fits:
        return [
            _(
                "memory: this run needs about {need}, and {free} are free; `tsugiki plan` shows what fits, and --fit "
                "takes it"
            ).format(need=need, free=free)
        ]
    if planned.recomputed_blocks and config.recompute == AUTO:
        return [
            _(
                "memory: about {need} of {free}; the activations of {count} blocks are computed again in the backward "
                "pass, because all of them do not fit"
            ).format(need=need, free=free, count=planned.recomputed_blocks)
        ]
    return []


def fitted(config: RunConfig, plan: Plan) -> RunConfig:
    """Return the settings with the chosen option of a plan; the rows per optimiser step do not change.

    Raises:
        TsugikiError: nothing fits.
    """
    chosen = plan.options[0]
    if not chosen.fits:
        raise TsugikiError(smallest_need(plan))
    values: dict[str, Any] = {"recompute": chosen.recompute, "micro_batch_size": chosen.micro_batch_size}
    if METHODS[config.method].trains_adapter:
        values["base_dtype"] = chosen.base_dtype
    return config.model_copy(update=values)


def smallest_need(plan: Plan) -> str:
    """Return the message for a run of which no option fits."""
    least: Option = min(plan.options, key=lambda option: option.peak_memory)
    return _(
        "{model} does not fit in the memory of this machine: the smallest way needs {need} (base_dtype {dtype}, "
        "recompute {recompute}), and {free} are free; choose a smaller model or a smaller --block-size"
    ).format(
        model=plan.model,
        need=format_gigabytes(least.peak_memory),
        dtype=least.base_dtype,
        recompute=least.recompute,
        free=format_gigabytes(plan.available or 0),
    )
