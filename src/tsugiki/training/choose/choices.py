"""What a run decides before its first step, from the model, the method, the amount of text and the time that it has.

    rows in a step    the rows of three passes / 100, so that these are about 100 optimiser steps; at least 2, at most
                      16, whatever the machine, so that a run has the same steps on any number of threads; at least one
                      for each process; other lengths change the steps, not their rows
    steps             those that are set, as steps, passes or minutes; otherwise three passes over texts. A run on
                      questions or conversations, whose facts need steps, ends when its validation text stops getting
                      better (`training.choose.decisions`), at the latest after 240 steps or 40 passes
    learning rate     see `training.choose.learning_rate`
    evaluations       as many as take a twentieth of the time of the steps, or, if the length is open, after steps that
                      grow by a third or a half; the held-out text, before and after the run, has 7 % of this time

The settings of a run never change. What was chosen is recorded (`resolved_settings` in `run.json`), and a resumed run
reads it from there.

The time for evaluations is a share of the time of the steps. It is computed from numbers of tokens, because with
measured times, two runs with the same settings could keep different steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from tsugiki.data.windows import WINDOW_CHARACTERS, Window
from tsugiki.errors import TsugikiError
from tsugiki.language import _, counts
from tsugiki.training.choose.learning_rate import automatic_learning_rate, weight_gain
from tsugiki.training.data.packing import PackedDataset
from tsugiki.training.model.trainable import width_of
from tsugiki.training.record.run_record import DataSummary
from tsugiki.training.settings.config import AUTO, RunConfig

_STEPS, _PASSES = 100, 3
_STEPS_FOR_ANSWERS, _MOST_STEPS_FOR_ANSWERS, _MOST_PASSES = 60, 240, 40
"""Of questions and conversations: steps without a validation text, and the most steps and passes with one."""
_FEWEST_ROWS, _MOST_ROWS = 2, 16
_MOST_EPOCHS = 20  # of a run whose length is set in minutes
_EVALUATION_COST = 0.5  # time of a token in an evaluation, relative to a token in a step
_TIME_OF_STEPS = 0.85  # of the time left after the held-out evaluations; the rest is for other evaluations and samples
_SHARE, _LARGEST_SHARE = 0.05, 0.08  # of the time of the steps: the target, and the limit
_SHORT_RUN, _LARGEST_SHARE_IF_SHORT = 40_960, 0.2  # tokens in the steps, and the limit for fewer of them
_HELD_OUT_SHARE = 0.07  # of the time of the steps: for two evaluations of the held-out text
_MOST, _FEW, _FEWEST = 8, 4, 2  # evaluations in a run
FEW_WINDOWS, _MOST_WINDOWS = 8, 32


@dataclass(frozen=True)
class Choices:
    """The numbers with which a run trains."""

    batch_size: int
    """Rows of an optimiser step."""
    learning_rate: float
    steps: int
    """Optimiser steps of the whole run."""
    micro_batch_size: int | None = None
    """Rows that are computed at once; None: see `training.model.trainable.rows_of_micro_batch`."""
    keep: Literal["best", "last"] = "best"
    """The step that the run ends with."""
    is_open: bool = False
    """Whether the run ends before `steps` when its validation text stops getting better."""
    passes: float = 0.0
    """Passes over the data in these steps."""
    head_factor: float = 1.0
    """Learning rate of the output head's B relative to `learning_rate` (see `training.choose.output_head`)."""
    automatic: tuple[str, ...] = ()
    """The settings that are `auto`."""

    def resolved(self) -> dict[str, Any]:
        """Return name -> value for the automatic settings, and the number of steps."""
        head = {} if self.head_factor == 1.0 else {"head_factor": self.head_factor}
        return {**{name: getattr(self, name) for name in self.automatic}, **head, "steps": self.steps}


def choices_for(
    config: RunConfig,
    model: nn.Module,
    rows: int,
    row_tokens: int,
    before: Mapping[str, Any] = {},
    rows_in_time: Callable[[], int] | None = None,
    processes: int = 1,
    *,
    learns_answers: bool = False,
    has_validation: bool = False,
) -> Choices:
    """Choose the rows of a step, the learning rate and the number of steps for `rows` rows of `row_tokens` tokens.

    `before` has the values that a resumed run has chosen before it was interrupted. `rows_in_time` measures how many
    rows can be trained on in `config.minutes`. `processes` share the rows of a step. `learns_answers`: the rows are
    questions or conversations. `has_validation`: there is a validation text, which can end the run.
    """
    batch_size, rate, steps = config.batch_size, config.learning_rate, config.max_steps
    in_run = rows * _PASSES  # of a run of the usual length
    if config.minutes is not None:
        steps = before.get("steps")
        if steps is None and rows_in_time is not None:
            in_run = min(rows_in_time(), _MOST_EPOCHS * rows)
    if batch_size == AUTO:
        batch_size = before.get("batch_size") or max(min(in_run // _STEPS, _MOST_ROWS), _FEWEST_ROWS, processes)
    if config.minutes is not None and steps is None:
        steps = max(1, in_run // min(batch_size, rows))
    in_pass, is_open = math.ceil(rows / batch_size), False  # the last step of a pass may have fewer rows
    if steps is None and config.epochs != AUTO:
        steps = math.ceil(config.epochs * in_pass)
    if steps is None:
        steps = _PASSES * in_pass
        if learns_answers and config.preference is None:
            is_open = has_validation and config.keep == "best" and config.lr_scheduler_type == "linear"
            most = _MOST_STEPS_FOR_ANSWERS if is_open else _STEPS_FOR_ANSWERS
            steps = max(steps, min(_MOST_PASSES * in_pass, most))
    if rate == AUTO:
        rate = before.get("learning_rate") or config.learning_rate_factor * automatic_learning_rate(
            config,
            width_of(model),
            _PASSES * in_pass if is_open else steps,
            batch_size * row_tokens,
            weight_gain(model),
        )
    assert not isinstance(rate, str)
    automatic = tuple(name for name in ("batch_size", "learning_rate") if isinstance(getattr(config, name), str))
    return Choices(
        batch_size, rate, steps, config.micro_batch_size, config.keep, is_open, steps / in_pass, automatic=automatic
    )


def with_new_length(choices: Choices, config: RunConfig, done: int) -> Choices:
    """Return the choices of a run that is continued with another length, after `done` steps.

    With `minutes`, the steps in `choices` are those that can still be done.
    """
    steps = choices.steps + (done if config.minutes is not None else 0)
    if steps <= done:
        raise TsugikiError(
            "the run in {out} has done {done} steps, and its new length is {steps}: give a larger one",
            out=config.out,
            done=done,
            steps=steps,
        )
    return replace(choices, steps=steps)


def length_note(choices: Choices) -> str:
    """Return the sentence that says how long a run can be whose settings do not say it."""
    message = _("a run of {steps}, {passes:g} passes over the data")
    if choices.is_open:
        message = _(
            "the run ends when it gets no better on text that is kept aside to choose, at the latest after {steps}, "
            "{passes:g} passes over the data"
        )
    return message.format(steps=counts.steps(choices.steps), passes=round(choices.passes, 1))


def describe_choices(resolved: Mapping[str, Any]) -> list[str]:
    """Return one line with the values that were chosen for settings that are `auto`; no line if there are none.

    `resolved` has these values (`Choices.resolved`).
    """
    names = {"batch_size": _("batch size"), "learning_rate": _("learning rate")}
    chosen = [f"{label} {resolved[name]:g}" for name, label in names.items() if name in resolved]
    if not chosen:
        return []
    return [_("chosen: {chosen}").format(chosen=_(", ").join(chosen))]


def rows_in_time(seconds: float, seconds_per_row: float, summary: DataSummary, characters: int | None) -> int:
    """Return how many rows a run can train on in the seconds that are left, evaluations and samples included.

    `characters` is the number of held-out characters to evaluate, if the user has set it.

    Raises a TsugikiError if the time does not suffice for a single row.
    """
    tokens = summary.held_out.measured_characters * summary.tokens_per_epoch / max(summary.train.characters, 1)
    evaluations = 2 * _EVALUATION_COST * tokens * seconds_per_row / (summary.tokens_per_epoch / summary.blocks)
    if characters is None:
        few = min(1.0, FEW_WINDOWS * WINDOW_CHARACTERS / max(summary.held_out.measured_characters, 1))
        evaluations = min(evaluations, max(_HELD_OUT_SHARE * seconds, few * evaluations))
    rows = math.floor((seconds - evaluations) * _TIME_OF_STEPS / seconds_per_row)
    if rows < 1:
        least = math.ceil((evaluations + seconds_per_row / _TIME_OF_STEPS - min(seconds, 0)) / 60 + 1)
        raise TsugikiError(
            "minutes: the time is over before the first step, because loading and evaluating take longer; give "
            "about {least} minutes or more",
            least=least,
        )
    return rows


def decay_start(steps: int) -> int:
    """Return the step after which the learning rate falls in a run of open length that has at most so many steps."""
    return steps - steps // 5


@dataclass(frozen=True)
class EvaluationPlan:
    """The evaluations of a run."""

    evaluations: int
    """Number of evaluations of the validation text, evenly spread, the last one after the last step. 0: the run is too
    short for two. Of a run of open length, the most that there are."""
    windows: int
    """Windows of text in each of them."""
    held_out: int
    """Windows of held-out text that are evaluated before and after the run."""
    steps: frozenset[int] | None = None
    """Of a run of open length: the steps after which the validation text is evaluated, beside the last one."""

    def is_due(self, step: int, total: int, every: int | None) -> bool:
        """Return whether there is an evaluation after a step; `every` is the number of steps that the user has set."""
        if every is not None:
            return is_due(step, total, every)
        if self.steps is not None:
            return step in self.steps or step == total
        count = self.evaluations
        return count > 0 and step * count // total > (step - 1) * count // total


def is_due(step: int, total: int, every: int) -> bool:
    """Return whether a step is the last one, or a multiple of `every` that is not shortly before the last one."""
    return step == total or (step % every == 0 and total - step > every // 2)


def plan_evaluations(
    choices: Choices, data: PackedDataset, every: int | None, characters: int | None = None, scores: int = 1
) -> EvaluationPlan:
    """Return how often the validation text (without one, the held-out text) is evaluated during a run, and how much.

    `every` is the number of steps between two evaluations, and `characters` that of held-out characters, if the user
    has set them. `scores` is how often an evaluation scores the validation text, with different parts of the update.
    """
    steps = choices.steps
    trained = steps * min(choices.batch_size, len(data.blocks)) * data.summary.tokens_per_epoch / len(data.blocks)
    held_out = len(data.windows)
    if characters is None:
        affordable = int(_HELD_OUT_SHARE * trained // max(2 * _cost_of_window(data, data.windows), 1))
        held_out = min(held_out, max(affordable, FEW_WINDOWS))
    windows = data.validation_windows or data.windows
    if every is not None:
        count = min(len(windows), _MOST_WINDOWS) if data.validation_windows else held_out
        return EvaluationPlan(_MOST, count, held_out)
    per_window, fewest = scores * _cost_of_window(data, windows), min(len(windows), FEW_WINDOWS)
    cost, limit = max(fewest * per_window, 1), _LARGEST_SHARE_IF_SHORT if trained < _SHORT_RUN else _LARGEST_SHARE
    evaluations = min(max(int(_SHARE * trained // cost), _FEW), _MOST, int(limit * trained // cost), steps)
    if evaluations < (1 if scores > 1 else _FEWEST):  # one look at the end suffices for the strength
        return EvaluationPlan(0, fewest, held_out)
    most = int(_SHARE * trained // max(evaluations * per_window, 1))
    most = min(len(windows), _MOST_WINDOWS, max(most, fewest))
    if not choices.is_open:
        return EvaluationPlan(evaluations, most, held_out)
    due = _growing_steps(steps, limit * trained / (steps * most * per_window))
    return EvaluationPlan(len(due) + 1, most, held_out, frozenset(due))


def _growing_steps(steps: int, affordable: float) -> list[int]:
    """Return 8, 12, 16, 24, 32, 48, … before the rate falls, without those at which evaluations would take too long.

    `affordable` is how many evaluations are allowed for each step that was done.
    """
    due: list[int] = []
    for step in (start << power for power in range(steps.bit_length()) for start in (8, 12)):
        if step <= decay_start(steps) and len(due) + 1 <= affordable * step:
            due.append(step)
    return due


def _cost_of_window(data: PackedDataset, windows: Sequence[Window]) -> float:
    """Return the time of the mean window in an evaluation, in tokens of a step."""
    per_character = data.summary.tokens_per_epoch / max(data.summary.train.characters, 1)
    characters = sum(len(window.record.text) for window in windows)
    return _EVALUATION_COST * per_character * characters / max(len(windows), 1)
