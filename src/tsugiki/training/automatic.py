"""The settings that are `auto`, chosen before the first step from the model, the method and the amount of text.

    rows in a step    all rows of the run / 100, so that a run has about 100 optimiser steps; at least 2, at most 16,
                      whatever the machine, so that a run has the same steps on any number of threads and processes
    learning rate     5e-4 (2000 / width)^0.781 · 32 / alpha, and 1.5 times that in a run of fewer than 150 steps;
                      in steps of fewer than 2048 tokens, times sqrt(tokens / 2048), but at least half of it

The rule for the learning rate has the form of tinker-cookbook's `get_lr` (Thinking Machines, 2026), with one power for
all families of models and the factor for short runs that "LoRA Without Regret" (Schulman, 2025) reports. Scaling the
rate with the square root of the batch is a rule of tinker-cookbook as well; that it holds for small steps was measured
here. The rate does not depend on the rank, because an update of LoRA is scaled by alpha / r. Methods without low-rank
factors have a fixed learning rate, and full fine-tuning has a tenth of LoRA's (see `methods.table`). docs/training.md
compares the rule with sweeps.

The chosen values are recorded (`resolved_settings` in `run.json`), and a resumed run reads them from there.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import METHODS
from tsugiki.model.context import text_config
from tsugiki.training.config import AUTO, PROBE, RunConfig

_STEPS = 100
_FEWEST_ROWS, _MOST_ROWS = 2, 16
_MOST_EPOCHS = 20  # of a run whose length is set in minutes
_SHORT_RUN, _SHORT_RUN_FACTOR = 150, 1.5
_SMALL_STEP, _SMALLEST_FACTOR = 2048, 0.5  # tokens, and the least that the learning rate is multiplied by
_HIGHEST_RATE = 1e-2


class ResolvedConfig(RunConfig):
    """The settings of a run, with numbers instead of `auto`."""

    batch_size: int
    learning_rate: float


def resolve(
    config: RunConfig,
    model: nn.Module,
    rows: int,
    row_tokens: int,
    chosen: Mapping[str, Any] = MappingProxyType({}),
    rows_in_time: Callable[[], int] | None = None,
) -> ResolvedConfig:
    """Choose the settings that are `auto`, and the number of steps of a run whose length is set in minutes.

    Args:
        config: the settings as they were given.
        model: the base model.
        rows: number of rows of the training data.
        row_tokens: tokens of a row.
        chosen: the values that a resumed run has chosen before it was interrupted.
        rows_in_time: measures how many rows can be trained on in `config.minutes`.
    """
    batch_size, rate, steps = config.batch_size, config.learning_rate, config.max_steps
    in_run = math.floor(rows * config.epochs)
    if config.minutes is not None:
        steps = chosen.get("steps")
        if steps is None and rows_in_time is not None:
            in_run = min(rows_in_time(), _MOST_EPOCHS * rows)
    if batch_size == AUTO:
        batch_size = chosen.get("batch_size") or _batch_size(steps, in_run)
    if config.minutes is not None and steps is None:
        steps = max(1, in_run // min(batch_size, rows))
    resolved = with_values(config, batch_size=batch_size, max_steps=steps, learning_rate=1.0)
    if rate in (AUTO, PROBE):
        rate = chosen.get("learning_rate") or automatic_learning_rate(
            config, _width(model), total_steps(resolved, rows), batch_size * row_tokens
        )
    return with_values(resolved, learning_rate=rate)


def with_values(config: RunConfig, **values: Any) -> ResolvedConfig:
    """Return the settings with other values, which are not validated again."""
    return ResolvedConfig.model_construct(config.model_fields_set, **{**dict(config), **values})


def total_steps(config: ResolvedConfig, rows: int) -> int:
    """Return the number of optimiser steps of a run on `rows` rows. The last step of an epoch may have fewer rows."""
    if config.max_steps is not None:
        return config.max_steps
    return math.ceil(config.epochs * math.ceil(rows / config.batch_size))


def automatic_learning_rate(config: RunConfig, width: int, steps: int, tokens: int) -> float:
    """Return the learning rate for a run whose settings say `auto`, rounded to two significant digits.

    Args:
        config: the settings: method, rank and alpha.
        width: width of the base's hidden states.
        steps: optimiser steps of the run.
        tokens: tokens of an optimiser step.
    """
    method = METHODS[config.method]
    if method.learning_rate is not None:
        return method.learning_rate
    rate = 5e-4 * (2000 / width) ** 0.781 * method.learning_rate_factor
    if steps < _SHORT_RUN and config.start_from is None:  # B is 0 at first only in a new adapter
        rate *= _SHORT_RUN_FACTOR
    rate *= min(1.0, max(_SMALLEST_FACTOR, math.sqrt(tokens / _SMALL_STEP)))
    adapter = config.adapter_config
    if isinstance(adapter, LoraConfig):
        rate *= 32 / (adapter.lora_alpha * (math.sqrt(adapter.r) if adapter.use_rslora else 1))
    return float(f"{min(rate, _HIGHEST_RATE):.2g}")


def _batch_size(steps: int | None, in_run: int) -> int:
    if steps is not None:  # it does not depend on the batch size
        return _MOST_ROWS
    return min(max(in_run // _STEPS, _FEWEST_ROWS), _MOST_ROWS)


def _width(model: nn.Module) -> int:
    width: int | None = getattr(text_config(model), "hidden_size", None)
    return width or model.get_input_embeddings().embedding_dim  # type: ignore[operator]
