"""When a run evaluates its validation text, and how much of it.

The time for it is a share of the time of the steps. A token costs about half as much in an evaluation as in a training
step, so the share follows from numbers of tokens, and not from measured times, which would let two runs with the same
settings keep different steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tsugiki.train.automatic import ResolvedConfig, total_steps
from tsugiki.train.preparation import PackedDataset

T = TypeVar("T")

_COST = 0.5  # of a token in an evaluation, relative to a token in a step
_SHARE, _LARGEST_SHARE = 0.05, 0.2  # of the steps: what is aimed at, and what a short run may take for fewest looks
_MOST, _FEW, _FEWEST = 8, 4, 2  # evaluations in a run
_FEW_WINDOWS, _MOST_WINDOWS = 12, 32


@dataclass(frozen=True)
class Looks:
    """The evaluations of the validation text in a run."""

    looks: int
    """How many, evenly spread, the last one after the last step. 0: the run is too short for two."""
    windows: int
    """Windows of text in each."""

    def is_due(self, step: int, total: int, every: int | None) -> bool:
        """Return whether there is one after a step.

        Args:
            step: the number of steps done.
            total: steps of the run.
            every: steps between two evaluations, if the user has set them.
        """
        if every is not None:
            return step == total or (step % every == 0 and total - step > every // 2)
        return self.looks > 0 and step * self.looks // total > (step - 1) * self.looks // total


def plan_looks(config: ResolvedConfig, data: PackedDataset) -> Looks:
    """Return how often the validation text (without one, the held-out text) is evaluated during a run."""
    windows = data.validation_windows or data.windows
    if config.eval_steps is not None:
        return Looks(_MOST, min(len(windows), _MOST_WINDOWS) if data.validation_windows else len(windows))
    steps = total_steps(config, len(data.blocks))
    trained = steps * min(config.batch_size, len(data.blocks)) * data.summary.tokens_per_epoch / len(data.blocks)
    per_character = data.summary.tokens_per_epoch / max(data.summary.train.characters, 1)
    characters = sum(len(window.record.text) for window in windows)
    per_window = _COST * per_character * characters / max(len(windows), 1)
    fewest = min(len(windows), _FEW_WINDOWS)
    looks = int(_SHARE * trained // max(fewest * per_window, 1))
    looks = min(max(looks, _FEW), _MOST, int(_LARGEST_SHARE * trained // max(fewest * per_window, 1)), steps)
    if looks < _FEWEST:
        return Looks(0, fewest)
    most = int(_SHARE * trained // max(looks * per_window, 1))
    return Looks(looks, min(len(windows), _MOST_WINDOWS, max(most, fewest)))


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, or all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
