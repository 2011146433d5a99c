"""Plan a run: the memory and the time for each combination of base dtype, recomputed blocks and micro-batch size.

The time of a step is that of its micro-batches. A processor computes as many of them at a time as torch has threads, an
accelerator one:

    micro-batches / threads · (blocks · (forward + backward) + recomputed blocks · forward + loss)

The range that is shown covers evaluations, samples and checkpoints, which the estimate leaves out, and the influence of
other programs.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from tsugiki.annotations import PretrainedConfig
from tsugiki.base.checks import check_weights
from tsugiki.base.resolve import gguf_path, loading_errors, weight_entries
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.formatting import format_gigabytes
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import METHODS
from tsugiki.model.linear import features
from tsugiki.model.ungrafted import output_head
from tsugiki.training.choose.choices import choices_for
from tsugiki.training.choose.output_head import leaves_layers_open, with_output_head
from tsugiki.training.measure.cost import Need, need_of
from tsugiki.training.measure.dtype_speed import rows_at_once
from tsugiki.training.measure.facts import load_dtype
from tsugiki.training.measure.memory_plan import computing_dtype, memory_for_process, memory_limit, micro_batch_sizes
from tsugiki.training.measure.shapes import Shapes, find_shapes
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.tools.processes import device_type, has_device, planned_compute_dtype

Recompute: TypeAlias = Literal["none", "auto", "blocks"]
RANGE = (0.8, 1.4)
"""Lowest and highest time of a run, relative to the planned time."""


@dataclass(frozen=True)
class Option:
    """One way to run: a base dtype, a number of recomputed blocks and a micro-batch size."""

    base_dtype: BaseDtype
    recompute: Recompute
    """Which blocks are recomputed. none; blocks: all; auto: as many as needed."""
    recomputed_blocks: int
    micro_batch_size: int
    peak_memory: int
    """Bytes of the process, or of the accelerator."""
    step_seconds: float | None
    """None if the device is not on this machine."""
    seconds: float | None
    """Time of all steps; None without data, or if the device is not on this machine."""
    fits: bool


@dataclass(frozen=True)
class Plan:
    """The memory, the disk and the time that a run needs, planned before it starts."""

    model: str
    device: str
    """Where the run computes, by torch's name."""
    is_elsewhere: bool
    """Whether the memory is that of another machine."""
    parameters: int
    trainable: int
    head: int
    """Parameters that train in addition if the run adds the output head (see `output_head`); 0: it never does."""
    file_bytes: int | None
    """Size of the model's files; None if it is not known."""
    is_here: bool
    """Whether the files are on this machine."""
    free_disk: int
    """Bytes."""
    available: int | None
    """Bytes of the device's memory that this process can use, including those that it already uses; None if the system
    does not report them."""
    blocks: int
    tokens: int
    """Tokens of a row."""
    batch_size: int
    steps: int | None
    """Optimiser steps of the run; None without data."""
    parts: dict[str, int]
    """Bytes of the parts of the chosen option's peak memory."""
    options: tuple[Option, ...]
    """The options, the chosen one first."""


def plan_run(
    config: RunConfig,
    rows: int | None,
    learns_answers: bool = False,
    has_validation: bool = False,
    base_dtypes: Sequence[BaseDtype] | None = None,
    memory_size: int | None = None,
) -> Plan:
    """Plan a run on this machine's accelerator, or on its processor.

    Args:
        config: the settings of the run.
        rows: number of rows of the training data; None: unknown.
        learns_answers: whether they are questions or conversations.
        has_validation: whether there is a validation text, which can end the run.
        base_dtypes: dtypes of the base to compare; None: all that the settings allow.
        memory_size: bytes of memory of another machine. Its accelerator, `config.device`, need not be here; then no
            times are planned. None: what is free here.

    Raises:
        TsugikiError: there is no such model or device, or its blocks cannot be measured.
    """
    if memory_size is None or config.device == AUTO:
        device = torch.device(device_type(config.device))
    else:
        device = torch.device(config.device)
    is_here = has_device(device.type)
    shapes = find_shapes(config.model, config.block_size, config.virtual_tokens)
    file_bytes, has_files = _files(config.model, shapes.config)
    tokens, threads = shapes.row_tokens, torch.get_num_threads() if device.type == "cpu" else 1
    choices = choices_for(
        config,
        shapes.model,
        rows or 100 * threads,
        tokens,
        learns_answers=learns_answers,
        has_validation=has_validation,
    )
    steps = None if rows is None else choices.steps
    in_step = choices.batch_size if rows is None else min(choices.batch_size, rows)
    available = memory_size or memory_for_process(device)
    options, needs, head = [], {}, _head_parameters(config, shapes)
    for base_dtype in base_dtypes or _dtypes(config, device):
        is_measured = device.type == "cpu" and memory_size is None and config.micro_batch_size is None
        faster = rows_at_once(config, shapes, base_dtype, in_step) if is_measured else None
        for size in [faster] if faster else micro_batch_sizes(config, device, tokens, in_step):
            need = replace(need_of(config, shapes, base_dtype, device, size, in_step, timed=is_here), head=head)
            for option in _options(config, need, base_dtype, size, in_step, steps, available):
                options.append(option)
                needs[option] = need
    ordered = _ordered(options)
    chosen = needs[ordered[0]]
    return Plan(
        model=config.model,
        device=device.type,
        is_elsewhere=memory_size is not None,
        parameters=chosen.parameters,
        trainable=chosen.trainable,
        head=head,
        file_bytes=file_bytes,
        is_here=has_files,
        free_disk=_free_disk(),
        available=available,
        blocks=chosen.blocks,
        tokens=tokens,
        batch_size=in_step,
        steps=steps,
        parts=chosen.parts(ordered[0].recomputed_blocks),
        options=tuple(ordered),
    )


def fitted(config: RunConfig, plan: Plan) -> RunConfig:
    """Return the settings with the chosen option of a plan, which must fit; the rows of a step do not change."""
    chosen = plan.options[0]
    if not chosen.fits:
        raise TsugikiError(smallest_need(plan))
    values: dict[str, Any] = {"recompute": chosen.recompute, "micro_batch_size": chosen.micro_batch_size}
    if METHODS[config.method].trains_adapter:
        values["base_dtype"] = chosen.base_dtype
    return config.model_copy(update=values)


def smallest_need(plan: Plan) -> str:
    """Return the message for a run of which no option fits."""
    least = min(plan.options, key=lambda option: option.peak_memory)
    return _(
        "{model} does not fit in the memory: the smallest way needs {need} (base_dtype {dtype}, "
        "recompute {recompute}), and {free} are free; choose a smaller model or a smaller {flag:block_size}",
        model=plan.model,
        need=format_gigabytes(least.peak_memory),
        dtype=least.base_dtype,
        recompute=least.recompute,
        free=format_gigabytes(plan.available or 0),
    )


def _dtypes(config: RunConfig, device: torch.device) -> list[BaseDtype]:
    """Return the dtypes to compare: the one that is set, or all that the method allows."""
    if config.base_dtype is not None or config.trains_base_parameters():
        return [computing_dtype(config, device, load_dtype(config, device))]
    return [planned_compute_dtype(device), "int8", "nf4"]


def _options(
    config: RunConfig,
    need: Need,
    base_dtype: BaseDtype,
    size: int,
    in_step: int,
    steps: int | None,
    available: int | None,
) -> Iterator[Option]:
    """Yield an option for each number of recomputed blocks: none, as many as needed, and all, if the settings allow."""
    limit = None if available is None else memory_limit(available)
    counts = {"none": [0], "blocks": [need.blocks]}.get(config.recompute, [0])
    if config.recompute == AUTO and not config.virtual_tokens:
        needed = need.blocks if limit is None else need.recomputed(limit)
        counts = sorted({0, needed, need.blocks})
    for count in counts:
        peak = need.peak(count)
        seconds = _step_seconds(need, size, in_step, count) if need.measured.forward else None
        recompute: Recompute = "none" if not count else "blocks" if count == need.blocks else AUTO
        total = None if steps is None or seconds is None else steps * seconds
        fits = limit is None or peak <= limit
        yield Option(base_dtype, recompute, count, size, peak, seconds, total, fits)


def _step_seconds(need: Need, size: int, in_step: int, recomputed: int) -> float:
    time = need.measured
    micro_batch = need.blocks * (time.forward + time.backward) + recomputed * time.forward + time.loss
    return math.ceil(math.ceil(in_step / size) / need.threads) * micro_batch


def _ordered(options: Sequence[Option]) -> list[Option]:
    """Sort options: those that fit come first, the fastest before the others. If none fits, sort them by memory.

    A base in 4 bits costs quality, so it comes after all other dtypes that fit.
    """
    if not any(option.fits for option in options):
        return sorted(options, key=lambda option: option.peak_memory)
    coarse = any(option.fits and option.base_dtype != "nf4" for option in options)
    return sorted(
        options,
        key=lambda option: (
            not option.fits,
            coarse and option.base_dtype == "nf4",
            # If no times were measured, options with fewer recomputed blocks and more rows at once come first.
            option.recomputed_blocks if option.step_seconds is None else option.step_seconds,
            -option.micro_batch_size,
        ),
    )


def _files(name: str, shapes: PretrainedConfig) -> tuple[int | None, bool]:
    """Return the bytes of a model's weights, which must fit its config, and whether they are on this machine."""
    gguf = gguf_path(name)
    if gguf is not None:
        return gguf.stat().st_size, True
    entries, is_here = weight_entries(name)
    if entries is None:
        return None, False
    with loading_errors(name):
        check_weights(name, entries, shapes)
    return sum(entry.end - entry.begin for entry in entries.values()), is_here


def _head_parameters(config: RunConfig, shapes: Shapes) -> int:
    """Return how many parameters train in addition if the run finds that the output head must train."""
    settings, head = config.adapter_config, output_head(shapes.model)
    if head is None or not isinstance(settings, LoraConfig) or config.start_from is not None:
        return 0
    chooses = leaves_layers_open(settings) and with_output_head(shapes.model, settings) is not None
    return settings.r * sum(features(head)) if chooses else 0


def _free_disk() -> int:
    folder = cache_folder("")
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
