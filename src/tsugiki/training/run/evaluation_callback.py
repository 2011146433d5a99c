"""Evaluate and sample during a run, and keep its record up to date.

All processes evaluate, each a part of the text. Only the main process writes and shows progress. It alone samples,
unless the weights are in shards; then all processes generate the same text.

Runs with the same base and the same data can share `BaseResults`: the first one evaluates the base, and the others take
its results.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from tsugiki.data.records import Message
from tsugiki.generation.generate import generate_texts
from tsugiki.generation.sampling import Sampling
from tsugiki.language import _
from tsugiki.lora.hold import disable_adapter, is_grafted
from tsugiki.model.context import context_length
from tsugiki.training.choose.choices import FEW_WINDOWS, is_due, plan_evaluations
from tsugiki.training.choose.decisions import (
    HALF,
    Look,
    PairLook,
    enough_windows,
    is_certainly_lower,
    looks,
    multiply_update,
    pair_looks,
    starts_from_zero,
    strength_note,
)
from tsugiki.training.data.windows import Window, in_turns
from tsugiki.training.model.sharding import is_sharded
from tsugiki.training.model.trainable import restore_values, trained_values
from tsugiki.training.record.pairs import StepPairs
from tsugiki.training.record.result import StepEvaluation, change_of_bits, of_first_windows
from tsugiki.training.record.run_record import Sample, TrainingFigures
from tsugiki.training.score.evaluate import evaluate
from tsugiki.training.step.loop import Callback, TrainingLoop
from tsugiki.training.tools.memory import process_peak
from tsugiki.training.tools.processes import on_main
from tsugiki.training.tools.spread import evenly_spread

if TYPE_CHECKING:
    from tsugiki.training.run.stages import Run

BaseResults: TypeAlias = dict[tuple[object, ...], dict[str, list[Any]]]
"""Settings on which the results of the base depend -> fields of the record -> results."""
_OF_BASE = ("evaluations", "validations", "retention_evaluations", "samples")
_SECONDS_BETWEEN_WRITES = 1  # flushing a file to the disk takes longer than a quick step


class EvaluationCallback(Callback):
    """Evaluates and samples before the first step, during the run and at the end, and writes `run.json`.

    During the run, the validation text is evaluated if there is one; `training.choose.decisions` says what it decides.
    The checkpoint of the step with the lowest loss on it is kept, its weights are restored at the end, and the strength
    of an adapter is chosen. The held-out text does not influence this: it is evaluated at the end, with the base and
    then with the kept step, so that training begins earlier. If the base's weights train, the base is evaluated before
    the first step; without a validation text, so is the base of every run, and the text is evaluated during the run,
    too.

    Of preference tuning, these texts are the chosen answers, and the pairs are scored as well.
    """

    def __init__(self, run: "Run", restore: Callable[[int], bool], start: dict[str, Tensor]) -> None:
        """Create it for a run that is ready for its first step; its record gets the results.

        `restore` restores the trained weights of a step, and returns whether its checkpoint was intact. `start` has the
        trained values before the first step; empty: they are never restored.
        """
        self.run, self.restore, self.start = run, restore, start
        self.model, self.tokenizer = run.model, run.texts.tokenizer
        self.data, self.config, self.keep = run.data, run.config, run.choices.keep
        self.record, self.display = run.record, run.display
        self.base_results: BaseResults = {} if run.base_results is None else run.base_results
        # Validation pairs have a part in the choice of the step.
        self.keeps_by_pairs = self.data.answers is not None and self.data.answers.validation is not None
        # The context that remains after the adapter's soft prompt, if any. The base is evaluated with it as well, so
        # that both are scored on the same pieces of text.
        self.context = context_length(self.model)
        self.has_strength = self.keep == "best" and run.preference is None and starts_from_zero(self.model, start)
        scores = 2 if self.has_strength else 1
        self.plan = plan_evaluations(
            run.choices, self.data, self.config.eval_steps, self.config.held_out_characters, scores
        )
        # A run that is continued with another length compares losses on the same windows as before.
        windows = self.record.validations[0].windows if self.record.validations else self.plan.windows
        held_out = self.record.evaluations[0].windows if self.record.evaluations else self.plan.held_out
        self.validation_windows = in_turns(self.data.validation_windows)[:windows]
        self.held_out_windows = evenly_spread(self.data.windows, held_out)
        self._written = 0.0  # when the record was written last, in seconds of `time.monotonic`

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Evaluate the base model. Most new adapters do not change it, but an untrained soft prompt does."""
        started = time.monotonic()
        if loop.progress.step == 0:
            known = self.base_results.get(self._base_key())
            if known is not None and (known["evaluations"] or self._evaluates_base_at_end()):
                self._take(known, loop)
            else:
                with disable_adapter(self.model) if is_grafted(self.model) else nullcontext():
                    if not self._evaluates_base_at_end():
                        self._evaluate(loop)
                    self._evaluate_retention(loop)
                    if self._validates_base():
                        self._validate(loop)
                    self._sample(loop)
                self._share_base_results()
            self._score_held_out_pairs(loop, 0)
            if self.keeps_by_pairs and self._validates_base():
                self._score_pairs("validation", 0)
        # The display adds this to the time left, as an estimate of the evaluations and samples after the last step.
        self.display.begin(loop.steps, loop.progress.step, after=time.monotonic() - started)

    def _evaluates_base_at_end(self) -> bool:
        """Return whether the base is evaluated on the held-out text after the last step, not before the first one.

        With a tracker, it is evaluated before the first step: trackers expect metrics in the order of the steps.
        """
        return is_grafted(self.model) and self._validates_base() and not self.config.report_to

    def _share_base_results(self) -> None:
        results = {name: [one for one in getattr(self.record, name) if one.step == 0] for name in _OF_BASE}
        self.base_results[self._base_key()] = results

    def _validates_base(self) -> bool:
        return bool(self.validation_windows and self.plan.evaluations)

    def _base_key(self) -> tuple[object, ...]:
        """Return the settings on which the results of the base depend, besides the base and the data."""
        validation = len(self.validation_windows) if self._validates_base() else 0
        held_out = len(self.held_out_windows)
        return (self.context, validation, held_out, self.config.prompts, self.config.seed, self.config.sample_tokens)

    def _take(self, known: dict[str, list[Any]], loop: TrainingLoop) -> None:
        """Take the results of the base from another run."""
        for name, results in known.items():
            getattr(self.record, name).extend(results)
        for evaluation in self.record.evaluations:
            self.display.evaluation(evaluation)
        self._write_record(loop)

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Show the step, and evaluate and sample if this is due."""
        step, total = loop.progress.step, loop.steps
        counts = self.data.summary
        all_per_target = counts.tokens_per_epoch / max(1, counts.target_tokens_per_epoch)
        self.display.step(step, total, loop.step_loss, loop.progress.tokens_per_second * all_per_target)
        if loop.progress.loss_curve and loop.progress.loss_curve[-1].step == step:
            self._update_record(loop)
            if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
                self._write_record(loop)
        if self.plan.is_due(step, total, self.config.eval_steps):
            if self.validation_windows:
                self._choose(loop)
            elif step < total:
                self._evaluate(loop)
        if step < total and not loop.progress.stopped and is_due(step, total, self._sample_steps(total)):
            self._sample(loop)

    def on_train_end(self, loop: TrainingLoop) -> None:
        """Restore the weights of the best step, and evaluate and sample with them."""
        if is_grafted(self.model) and not self.record.evaluations:
            with disable_adapter(self.model):
                self._evaluate(loop, 0)
            self._share_base_results()
        best, last = loop.progress.best_step, loop.progress.step
        kept = 0
        if not self._restore_start(loop):
            kept = best if best is not None and best != last and self.restore(best) else last
        if self.has_strength and self.record.half_validations:
            kept = self._take_strength(kept)
        self.record.kept_step = kept
        self._evaluate(loop, kept)
        self._score_held_out_pairs(loop, kept)
        self._evaluate_retention(loop, kept)
        self._sample(loop, kept)

    def _restore_start(self, loop: TrainingLoop) -> bool:
        """Restore the values from the start if no step has a lower loss on the validation text, and return whether so.

        Most new adapters do not change the base when they start. Others are evaluated here, only if it may matter.
        """
        continues = self.config.start_from is not None
        if self.has_strength:
            return False
        if self.keeps_by_pairs and self.keep == "best" and self.record.validations and self.start:
            if loop.progress.best_step is None:
                restore_values(self.model, self.start)
            return loop.progress.best_step is None
        if loop.progress.best_step is None or not self.start or (self.record.any_step_is_better() and not continues):
            return False
        trained = trained_values(self.model)
        restore_values(self.model, self.start)
        best = min(look.loss for look in self.record.validations if look.step)
        if self._score(loop, self.validation_windows, 0).loss <= best:
            return True
        restore_values(self.model, trained)
        return False

    def _choose(self, loop: TrainingLoop) -> None:
        """Look at the validation text, take the lowest look as the best step, and end the run if the later ones rise.

        They rise if they are certainly above the lowest one (see `training.choose.decisions`).
        """
        progress = loop.progress
        self._validate(loop)
        if self.has_strength:
            self._validate_half(loop)
        if self.keeps_by_pairs:
            self._score_pairs("validation", progress.step)
        elif len(self.record.validations) == 2:
            self._use_enough_windows()
        if self.keep == "last":
            return
        done: Sequence[Look | PairLook] = [look for look in looks(self.record) if look.step]
        if self.keeps_by_pairs:
            done = pair_looks(self.record)
        best = min(done, key=lambda look: look.loss)
        progress.best_step = best.step or None
        kept = {look.step for look in done if not is_certainly_lower(best, look)}
        since = [one.step for one in self.record.validations if one.step > max(kept)]
        if self.config.patience and len(since) >= self.config.patience and progress.step < loop.steps:
            message = _(
                "step {step}: the loss on the validation text has risen since step {best_step}, so the run ends here"
            )
            self.display.print(message.format(step=progress.step, best_step=best.step))
            progress.stopped = True

    def _use_enough_windows(self) -> None:
        """Keep only as many validation windows as the first look shows to be enough."""
        record = self.record
        base, first = record.validations
        if first.skipped_records:
            return
        enough = enough_windows(change_of_bits(base, first).interval, first.windows, FEW_WINDOWS)
        self.validation_windows = self.validation_windows[:enough]
        record.validations = [of_first_windows(result, enough) for result in record.validations]
        record.half_validations = [of_first_windows(result, enough) for result in record.half_validations]

    def _take_strength(self, kept: int) -> int:
        """Multiply the update of the kept step by its strength, and return the step: 0 if the strength is 0."""
        best = next((look for look in looks(self.record) if look.step == kept), None)
        if best is None:  # a step of an earlier version, which scored no half
            return kept
        self.record.strength = best.strength
        if best.strength < 1:
            self.display.print(strength_note(best))
        if best.strength == 0:
            restore_values(self.model, self.start)
            return 0
        multiply_update(self.model, best.strength)
        return kept

    def _score_pairs(self, part: str, step: int) -> StepPairs:
        """Score the validation or the held-out pairs with the model after `step` steps."""
        assert self.run.preference is not None
        with self.display.stage(_("scoring pairs"), None):
            result = self.run.preference.scores(self.run, part, step)
        of_validation = part == "validation"
        (self.record.pair_validations if of_validation else self.record.pair_evaluations).append(result)
        self.display.pairs(result, _("validation") if of_validation else "")
        return result

    def _score_held_out_pairs(self, loop: TrainingLoop, step: int) -> None:
        if self.run.preference is not None and "held_out" in self.run.preference.answers.parts:
            result = self._score_pairs("held_out", step)
            loop.accelerator.log({"eval_accuracy": result.accuracy, "eval_margin": result.margin}, step=step)
            self._write_record(loop)

    def _evaluate(self, loop: TrainingLoop, step: int | None = None) -> None:
        if not self.data.summary.held_out.documents:
            return
        loop.read_losses()
        result = self._score(loop, self.held_out_windows, step)
        self.record.evaluations.append(result)
        self.display.evaluation(result)
        loop.accelerator.log({"eval_loss": result.loss, "eval_bits_per_char": result.bits_per_char}, step=result.step)
        self._write_record(loop)

    def _validate_half(self, loop: TrainingLoop) -> None:
        """Score the validation text with half of the update."""
        trained = trained_values(self.model)
        multiply_update(self.model, HALF)
        self.record.half_validations.append(self._score(loop, self.validation_windows))
        restore_values(self.model, trained)

    def _validate(self, loop: TrainingLoop) -> StepEvaluation:
        loop.read_losses()
        result = self._score(loop, self.validation_windows)
        self.record.validations.append(result)
        self.display.evaluation(result, _("validation"))
        loop.accelerator.log({"validation_loss": result.loss}, step=result.step)
        self._write_record(loop)
        return result

    def _evaluate_retention(self, loop: TrainingLoop, step: int | None = None) -> None:
        if self.data.retention_windows:
            result = self._score(loop, self.data.retention_windows, step)
            self.record.retention_evaluations.append(result)
            self.display.print(_("step {step}  retention loss {loss:.4f}").format(step=result.step, loss=result.loss))
            self._write_record(loop)

    def _score(self, loop: TrainingLoop, windows: list[Window], step: int | None = None) -> StepEvaluation:
        """Evaluate windows; `step` is the step of the model's weights (None: the last step)."""
        with self.display.stage(_("evaluating"), len(windows)) as advance:
            result = evaluate(
                self.model,
                self.tokenizer,
                windows,
                self.config.assistant_turns,
                advance,
                self.context,
                loop.accelerator,
            )
        return StepEvaluation(step=loop.progress.step if step is None else step, **dict(result))

    def _sample_steps(self, total: int) -> int:
        return self.config.sample_steps or max(1, total // 2)

    def _sample(self, loop: TrainingLoop, step: int | None = None) -> None:
        if is_sharded(self.model):
            self._add_samples(loop, step)
        else:
            on_main(loop.accelerator, lambda: self._add_samples(loop, step))

    def _add_samples(self, loop: TrainingLoop, step: int | None) -> None:
        chat, system = self.data.summary.learns_conversations, self.config.system
        opening = [] if system is None else [Message("system", system)]
        prompts = [[*opening, Message("user", prompt)] if chat else prompt for prompt in self.config.prompts]
        with self.display.stage(_("sampling"), None):
            texts = generate_texts(
                self.model, self.tokenizer, prompts, self.config.sample_tokens, Sampling(seed=self.config.seed)
            )
        for prompt, text in zip(self.config.prompts, texts, strict=True):
            done = loop.progress.step if step is None else step
            sample = Sample(step=done, prompt=prompt, text="\n" * chat + text)
            self.record.samples.append(sample)
            self.display.sample(sample)
        self._write_record(loop)

    def _update_record(self, loop: TrainingLoop) -> None:
        progress = loop.progress
        self.record.loss_curve = list(progress.loss_curve)
        self.record.preference_curve = list(progress.preference_curve)
        self.record.training = TrainingFigures(
            steps=progress.step,
            loss=progress.loss,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens_per_second,
            peak_memory=process_peak(),
        )

    def _write_record(self, loop: TrainingLoop) -> None:
        self._update_record(loop)
        if loop.accelerator.is_main_process:
            self.record.write(Path(self.config.out))
        self._written = time.monotonic()
