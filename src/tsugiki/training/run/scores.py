"""Score the texts and the pairs of a run with its model as it is, and write the results to the record.

All processes evaluate, each a part of the text, and all get the result. Only the main process writes and shows it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsugiki.data.windows import Window, evenly_spread, in_turns
from tsugiki.io.progress import Detail
from tsugiki.language import _
from tsugiki.lora.hold import active_names
from tsugiki.model.context import context_length
from tsugiki.training.choose.choices import FEW_WINDOWS, EvaluationPlan
from tsugiki.training.choose.decisions import HALF, enough_windows, multiply_update
from tsugiki.training.model.trainable import restore_values, trained_values
from tsugiki.training.record.result import StepEvaluation, StepPairs, change_of_bits, of_first_windows
from tsugiki.training.record.run_record import RunRecord, TrainingFigures
from tsugiki.training.run.load import kept_of_base
from tsugiki.training.run.preference import score_pairs
from tsugiki.training.run.start import Base, Ready, Start
from tsugiki.training.score.evaluate import evaluate
from tsugiki.training.step.checkpoint import Progress
from tsugiki.training.step.loop import TrainingLoop
from tsugiki.training.tools.memory import process_peak

_SECONDS_BETWEEN_WRITES = 1  # flushing a file to the disk takes longer than a quick step


class RecordFile:
    """The record of a run, and its file in the folder of the run, which the main process alone writes."""

    def __init__(self, record: RunRecord, folder: Path, is_main_process: bool) -> None:
        """Nothing is written yet."""
        self.record, self._folder, self._writes = record, folder, is_main_process
        self._written = 0.0  # when the record was written last, in seconds of `time.monotonic`

    def write(self, progress: Progress) -> None:
        """Take the progress into the record, and write the file."""
        self._update(progress)
        if self._writes:
            self.record.write(self._folder)
        self._written = time.monotonic()

    def write_at_times(self, progress: Progress) -> None:
        """Take the progress into the record, and write the file, unless it has just been written."""
        self._update(progress)
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.write(progress)

    def _update(self, progress: Progress) -> None:
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


class RunScores:
    """The held-out, the validation and the retention text of a run, and its pairs, which are scored again and again.

    Of preference tuning, the texts are the chosen answers.
    """

    def __init__(self, start: Start, base: Base, ready: Ready, plan: EvaluationPlan, file: RecordFile) -> None:
        """Create it for a run that is ready for its first step."""
        self.start, self.base, self.ready, self.file = start, base, ready, file
        self.record, self.display = start.record, start.display
        # The context that remains after the adapter's soft prompt, if any. The base is evaluated with it as well, so
        # that both are scored on the same pieces of text.
        self.context = context_length(base.model)
        # A run that is continued with another length compares losses on the same windows as before.
        windows = self.record.validations[0].windows if self.record.validations else plan.windows
        held_out = self.record.evaluations[0].windows if self.record.evaluations else plan.held_out
        self.validation_windows = in_turns(base.data.validation_windows)[:windows]
        self.held_out_windows = in_turns(evenly_spread(base.data.windows, held_out))

    @property
    def parts_of_pairs(self) -> Sequence[str]:
        """The parts of the answers that are scored, with that of training; none if texts are learned."""
        return tuple(self.base.data.answers)

    def evaluate(self, loop: TrainingLoop, step: int | None = None) -> None:
        """Score the held-out text, if there is any; `step` is that of the model's weights (None: the last step)."""
        if not self.base.data.summary.held_out.documents:
            return
        loop.read_losses()
        result = self.score(loop, self.held_out_windows, step)
        self.record.evaluations.append(result)
        self.display.evaluation(result)
        loop.accelerator.log({"eval_loss": result.loss, "eval_bits_per_char": result.bits_per_char}, step=result.step)
        self.file.write(loop.progress)

    def validate(self, loop: TrainingLoop, step: int | None = None) -> StepEvaluation:
        """Score the validation text; `step` is that of the model's weights (None: the last step)."""
        loop.read_losses()
        result = self.score(loop, self.validation_windows, step)
        self.record.validations.append(result)
        self.display.evaluation(result, _("validation"))
        loop.accelerator.log({"validation_loss": result.loss}, step=result.step)
        self.file.write(loop.progress)
        return result

    def validate_half(self, loop: TrainingLoop) -> None:
        """Score the validation text with half of the update."""
        trained = trained_values(self.base.model)
        multiply_update(self.base.model, HALF)
        self.record.half_validations.append(self.score(loop, self.validation_windows))
        restore_values(self.base.model, trained)

    def evaluate_retention(self, loop: TrainingLoop, step: int | None = None) -> None:
        """Score the text of `retention_data`, if it is set."""
        if self.base.data.retention_windows:
            result = self.score(loop, self.base.data.retention_windows, step)
            self.record.retention_evaluations.append(result)
            self.display.print(Detail(_("step {step}  retention loss {loss:.4f}", step=result.step, loss=result.loss)))
            self.file.write(loop.progress)

    def validate_pairs(self, step: int) -> None:
        """Score the validation pairs with the model after `step` steps."""
        self.record.pair_validations.append(self._score_pairs("validation", step, _("validation")))

    def evaluate_pairs(self, loop: TrainingLoop, step: int) -> None:
        """Score the held-out pairs, if there are any, with the model after `step` steps."""
        if "held_out" in self.parts_of_pairs:
            result = self._score_pairs("held_out", step)
            self.record.pair_evaluations.append(result)
            loop.accelerator.log({"eval_accuracy": result.accuracy, "eval_margin": result.margin}, step=step)
            self.file.write(loop.progress)

    def _score_pairs(self, part: str, step: int, label: str = "") -> StepPairs:
        with self.display.stage(_("scoring pairs"), None):
            result = score_pairs(self.start, self.base, self.ready, part, step)
        self.display.pairs(result, label)
        return result

    def score(self, loop: TrainingLoop, windows: list[Window], step: int | None = None) -> StepEvaluation:
        """Score windows; `step` is that of the model's weights (None: the last step)."""
        model, tokenizer, turns = self.base.model, self.base.tokenizer, self.start.config.assistant_turns
        step = loop.progress.step if step is None else step

        def compute() -> dict[str, Any]:
            with self.display.stage(_("evaluating"), len(windows)) as advance:
                return dict(evaluate(model, tokenizer, windows, turns, advance, self.context, loop.accelerator))

        facts = "scores", self.base.data.summary.digest, windows, turns, self.context
        is_base = step == 0 and not active_names(model)
        result = kept_of_base(self.start, self.base.model, self.base.dtype, facts, compute) if is_base else compute()
        return StepEvaluation(step=step, **result)

    def use_enough_windows(self) -> None:
        """Keep only as many validation windows as the first look shows to be enough."""
        record = self.record
        base, first = record.validations
        if first.skipped_records:
            return
        enough = enough_windows(change_of_bits(base, first).interval, first.windows, FEW_WINDOWS)
        self.validation_windows = self.validation_windows[:enough]
        record.validations = [of_first_windows(result, enough) for result in record.validations]
        record.half_validations = [of_first_windows(result, enough) for result in record.half_validations]
