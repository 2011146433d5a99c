"""When a run evaluates and samples: before its first step, during it and at its end.

The main process alone samples, unless the weights are in shards; then all processes generate the same text.

Runs with the same base and the same data can share the results of the base (`Base.results`): the first one evaluates
the base, and the others take its results.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from tsugiki.language import _
from tsugiki.lora.hold import disable_adapter, is_grafted
from tsugiki.training.choose.choices import is_due, plan_evaluations
from tsugiki.training.model.sharding import is_sharded
from tsugiki.training.run.best_step import BestStep, has_strength
from tsugiki.training.run.record_file import RecordFile
from tsugiki.training.run.samples import held_out_answers, samples
from tsugiki.training.run.scores import RunScores
from tsugiki.training.run.stage_results import Base, Ready
from tsugiki.training.run.start import Start
from tsugiki.training.step.loop import Callback, TrainingLoop
from tsugiki.training.tools.processes import on_main

_OF_BASE = ("evaluations", "validations", "retention_evaluations", "samples", "answers")


class EvaluationCallback(Callback):
    """Evaluates and samples before the first step, during the run and at the end, and writes `run.json`.

    During the run, the validation text is evaluated if there is one, and decides which step is kept (`BestStep`). The
    held-out text does not influence this: it is evaluated at the end, with the base and then with the kept step, so
    that training begins earlier. If the base's weights train, the base is evaluated before the first step; without a
    validation text, so is the base of every run, and the text is evaluated during the run, too.
    """

    def __init__(
        self, start: Start, base: Base, ready: Ready, restore: Callable[[int], bool], initial: dict[str, Tensor]
    ) -> None:
        """Create it for a run that is ready for its first step; its record gets the results.

        `restore` and `initial` are as in `BestStep`.
        """
        self.config, self.base, self.record, self.display = start.config, base, start.record, start.display
        self.model, keep = base.model, ready.choices.keep
        strength = has_strength(keep, self.model, initial, base.data.answers is not None)
        steps, characters = self.config.eval_steps, self.config.held_out_characters
        self.plan = plan_evaluations(ready.choices, base.data, steps, characters, scores=2 if strength else 1)
        self.file = RecordFile(self.record, start.out, start.accelerator.is_main_process)
        self.scores = RunScores(start, base, ready, self.plan, self.file)
        patience, continues = self.config.patience, self.config.start_from is not None
        self.best_step = BestStep(keep, patience, continues, self.scores, strength, restore, initial)

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Evaluate the base model. Most new adapters do not change it, but an untrained soft prompt does."""
        started = time.monotonic()
        if loop.progress.step == 0:
            self._evaluate_base(loop)
            self.scores.evaluate_pairs(loop, 0)
            if self.best_step.keeps_by_pairs and self._validates_base():
                self.scores.validate_pairs(0)
        # The display adds this to the time left, as an estimate of the evaluations and samples after the last step.
        self.display.begin(loop.steps, loop.progress.step, after=time.monotonic() - started)

    def _evaluate_base(self, loop: TrainingLoop) -> None:
        """Evaluate the base and sample from it, or take its results from another run."""
        known = self.base.results.get(self._base_key())
        if known is not None and (known["evaluations"] or self._evaluates_base_at_end()):
            self._take(known, loop)
            return
        with disable_adapter(self.model) if is_grafted(self.model) else nullcontext():
            if not self._evaluates_base_at_end():
                self.scores.evaluate(loop)
            self.scores.evaluate_retention(loop)
            if self._validates_base():
                self.scores.validate(loop)
            self._sample(loop, 0)
        self._share_base_results()

    def _evaluates_base_at_end(self) -> bool:
        """Return whether the base is evaluated on the held-out text after the last step, not before the first one.

        With a tracker, it is evaluated before the first step: trackers expect metrics in the order of the steps.
        """
        return is_grafted(self.model) and self._validates_base() and not self.config.report_to

    def _share_base_results(self) -> None:
        results = {name: [one for one in getattr(self.record, name) if one.step == 0] for name in _OF_BASE}
        self.base.results[self._base_key()] = results

    def _validates_base(self) -> bool:
        return bool(self.scores.validation_windows and self.plan.evaluations)

    def _base_key(self) -> tuple[object, ...]:
        """Return the settings on which the results of the base depend, besides the base and the data."""
        validation = len(self.scores.validation_windows) if self._validates_base() else 0
        held_out, config = len(self.scores.held_out_windows), self.config
        return (self.scores.context, validation, held_out, config.prompts, config.seed, config.sample_tokens)

    def _take(self, known: dict[str, list[Any]], loop: TrainingLoop) -> None:
        """Take the results of the base from another run."""
        for name, results in known.items():
            getattr(self.record, name).extend(results)
        for evaluation in self.record.evaluations:
            self.display.evaluation(evaluation)
        self.file.write(loop.progress)

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Show the step, and evaluate and sample if this is due."""
        step, total = loop.progress.step, loop.steps
        counts = self.base.data.summary
        all_per_target = counts.tokens_per_epoch / max(1, counts.target_tokens_per_epoch)
        self.display.step(step, total, loop.step_loss, loop.progress.tokens_per_second * all_per_target)
        if loop.progress.loss_curve and loop.progress.loss_curve[-1].step == step:
            self.file.write_at_times(loop.progress)
        if self.plan.is_due(step, total, self.config.eval_steps):
            if self.scores.validation_windows:
                self.best_step.look(loop)
            elif step < total:
                self.scores.evaluate(loop)
        sample_steps = self.config.sample_steps or max(1, total // 2)
        if step < total and not loop.progress.stopped and is_due(step, total, sample_steps):
            self._sample(loop)

    def on_train_end(self, loop: TrainingLoop) -> None:
        """Restore the weights of the best step, and evaluate and sample with them."""
        if is_grafted(self.model) and not self.record.evaluations:
            with disable_adapter(self.model):
                self.scores.evaluate(loop, 0)
            self._share_base_results()
        kept = self.record.kept_step = self.best_step.take(loop)
        self.scores.evaluate(loop, kept)
        self.scores.evaluate_pairs(loop, kept)
        self.scores.evaluate_retention(loop, kept)
        self._sample(loop, kept)

    def _sample(self, loop: TrainingLoop, step: int | None = None) -> None:
        """Sample; before the first step and at the end, where the step is given, answer held-out questions as well."""

        def add() -> None:
            with self.display.stage(_("sampling"), None):
                found = list(samples(self.config, self.base, loop.progress.step if step is None else step))
                answers = None if step is None else held_out_answers(self.config, self.base, step)
            for sample in found:
                self.record.samples.append(sample)
                self.display.sample(sample)
            if answers is not None:
                self.record.answers.append(answers)
            self.file.write(loop.progress)

        add() if is_sharded(self.model) else on_main(loop.accelerator, add)
