"""When a run evaluates its validation text, and how much of it.

The time for it is a share of the time of the steps. A token costs about half as much in an evaluation as in a training
step, so the share is computed from numbers of tokens. With measured times, two runs with the same settings could keep
different steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tsugiki.training.automatic import ResolvedConfig, total_steps
from tsugiki.training.packing import PackedDataset

T = TypeVar("T")

EVALUATION_COST = 0.5
"""Time of a token in an evaluation, relative to a token in a step."""
_SHARE, _LARGEST_SHARE = 0.05, 0.2  # of the time of the steps: the target, and the limit for a short run
_MOST, _FEW, _FEWEST = 8, 4, 2  # evaluations in a run
_FEW_WINDOWS, _MOST_WINDOWS = 12, 32


@dataclass(frozen=True)
class EvaluationPlan:
    """The evaluations of the validation text during a run."""

    evaluations: int
    """Number of evaluations, evenly spread, the last one after the last step. 0: the run is too short for two."""
    windows: int
    """Windows of text in each evaluation."""

    def is_due(self, step: int, total: int, every: int | None) -> bool:
        """Return whether there is an evaluation after a step.

        Args:
            step: the number of steps done.
            total: steps of the run.
            every: steps between two evaluations, if the user has set them.
        """
        if every is not None:
            return is_due(step, total, every)
        count = self.evaluations
        return count > 0 and step * count // total > (step - 1) * count // total


def is_due(step: int, total: int, every: int) -> bool:
    """Return whether a step is the last one, or a multiple of `every` that is not shortly before the last one."""
    return step == total or (step % every == 0 and total - step > every // 2)


def plan_evaluations(config: ResolvedConfig, data: PackedDataset) -> EvaluationPlan:
    """Return how often the validation text (without one, the held-out text) is evaluated during a run."""
    windows = data.validation_windows or data.windows
    if config.eval_steps is not None:
        count = min(len(windows), _MOST_WINDOWS) if data.validation_windows else len(windows)
        return EvaluationPlan(_MOST, count)
    steps = total_steps(config, len(data.blocks))
    trained = steps * min(config.batch_size, len(data.blocks)) * data.summary.tokens_per_epoch / len(data.blocks)
    per_character = data.summary.tokens_per_epoch / max(data.summary.train.characters, 1)
    characters = sum(len(window.record.text) for window in windows)
    per_window = EVALUATION_COST * per_character * characters / max(len(windows), 1)
    fewest = min(len(windows), _FEW_WINDOWS)
    cost = max(fewest * per_window, 1)
    evaluations = min(max(int(_SHARE * trained // cost), _FEW), _MOST, int(_LARGEST_SHARE * trained // cost), steps)
    if evaluations < _FEWEST:
        return EvaluationPlan(0, fewest)
    most = int(_SHARE * trained // max(evaluations * per_window, 1))
    return EvaluationPlan(evaluations, min(len(windows), _MOST_WINDOWS, max(most, fewest)))


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, evenly spread, or all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
