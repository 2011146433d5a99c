"""How long the steps of a run take on this machine, measured before the first one."""

import math
import time
from collections.abc import Callable

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.evaluation_plan import EVALUATION_COST
from tsugiki.training.loop import TrainingLoop
from tsugiki.training.packing import PackedDataset

_STEPS = 0.85  # share of the time left after the held-out evaluations; the rest is for other evaluations and samples


def seconds_per_step(loop: TrainingLoop, advance: Callable[[int], None] = lambda done: None) -> float:
    """Return the seconds of the first step's gradients, which are computed twice; the second time is measured.

    The run is not changed: nothing is updated, and dropout masks follow from the number of the step. All processes must
    call this together.
    """
    seconds = 0.0
    for _round in range(2):
        started = time.perf_counter()
        loop.gradients.step(0).tolist()
        seconds = time.perf_counter() - started
        advance(1)
    return seconds


def rows_in_time(seconds: float, seconds_per_row: float, data: PackedDataset) -> int:
    """Return how many rows a run can train on in a given time, evaluations and samples included.

    Args:
        seconds: the time that is left after loading the base and the data.
        seconds_per_row: time of training on one row.
        data: the data of the run.

    Raises:
        TsugikiError: the time does not suffice for a single row.
    """
    summary = data.summary
    tokens = summary.held_out.measured_characters * summary.tokens_per_epoch / max(summary.train.characters, 1)
    evaluations = 2 * EVALUATION_COST * tokens * seconds_per_row / (summary.tokens_per_epoch / summary.blocks)
    rows = math.floor((seconds - evaluations) * _STEPS / seconds_per_row)
    if rows < 1:
        least = math.ceil((evaluations + seconds_per_row / _STEPS - min(seconds, 0)) / 60 + 1)
        raise TsugikiError(
            _(
                "minutes: the time is over before the first step, because loading and evaluating take longer; give "
                "about {least} minutes or more"
            ).format(least=least)
        )
    return rows
