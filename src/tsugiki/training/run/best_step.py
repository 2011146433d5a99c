"""The step that a run ends with: looks at the validation text during the run, and the weights at its end.

`training.choose.decisions` says by which rules.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.records import Document
from tsugiki.io.progress import Detail
from tsugiki.language import _
from tsugiki.training.choose.decisions import (
    OF_ONE_TEXT,
    Look,
    PairLook,
    has_levelled,
    is_certainly_lower,
    looks,
    multiply_update,
    pair_looks,
    starts_from_zero,
    strength_note,
)
from tsugiki.training.model.trainable import restore_values, trained_values
from tsugiki.training.run.scores import RunScores
from tsugiki.training.settings.config import AUTO
from tsugiki.training.step.loop import TrainingLoop


def has_strength(keep: str, model: PreTrainedModel, initial: dict[str, Tensor], learns_answers: bool) -> bool:
    """Return whether a run chooses the strength of its adapter; `initial` has the values before the first step."""
    return keep == "best" and not learns_answers and starts_from_zero(model, initial)


class BestStep:
    """Chooses the step with the lowest loss on the validation text, and at the end takes its weights and strength."""

    def __init__(
        self,
        keep: str,
        patience: int,
        continues: bool,
        scores: RunScores,
        has_strength: bool,
        restore: Callable[[int], bool],
        initial: dict[str, Tensor],
    ) -> None:
        """Create it; `keep` is best or last, and the run ends after `patience` looks that are worse (0: never).

        `continues` says that the run began with the weights of an adapter.
        `restore` restores the trained weights of a step, and returns whether its checkpoint was intact. `initial` has
        the trained values before the first step; empty: they are never restored.
        """
        self.keep, self.patience, self.continues = keep, patience, continues
        self.scores, self.has_strength, self.restore, self.initial = scores, has_strength, restore, initial
        self.model, self.record, self.display = scores.base.model, scores.record, scores.display
        self.keeps_by_pairs = "validation" in scores.parts_of_pairs

    def look(self, loop: TrainingLoop) -> None:
        """Look at the validation text, take the lowest look as the best step, and end the run if the later ones rise.

        They rise if they are certainly above the lowest one.
        """
        progress = loop.progress
        self.scores.validate(loop)
        if self.has_strength:
            self.scores.validate_half(loop)
        if self.keeps_by_pairs:
            self.scores.validate_pairs(progress.step)
        elif len(self.record.validations) == 2:
            self.scores.use_enough_windows()
        if self.keep == "last":
            return
        done: Sequence[Look | PairLook] = [look for look in looks(self.record) if look.step]
        if self.keeps_by_pairs:
            done = pair_looks(self.record)
        best = min(done, key=lambda look: look.loss)
        progress.best_step = best.step or None
        kept = {look.step for look in done if not is_certainly_lower(best, look)}
        since = [one.step for one in self.record.validations if one.step > max(kept)]
        if self.patience and len(since) >= self.patience and progress.step < loop.steps:
            message = _(
                "step {step}: the loss on the validation text has risen since step {best_step}, so the run ends here",
                step=progress.step,
                best_step=best.step,
            )
            self.display.print(message)
            progress.stopped = True
        elif has_levelled(self.record):
            loop.end_soon()

    def take(self, loop: TrainingLoop) -> int:
        """Give the model the weights of the best step, or those from the start, and return the step."""
        best, last = loop.progress.best_step, loop.progress.step
        kept = 0
        if not self._restore_start(loop):
            kept = best if best is not None and best != last and self.restore(best) else last
        return self._take_strength(loop, kept) if self.has_strength else kept

    def _restore_start(self, loop: TrainingLoop) -> bool:
        """Restore the values from the start if no step has a lower loss on the validation text, and return whether so.

        Most new adapters do not change the base when they start. Others are evaluated here, only if it may matter.
        """
        best_step = loop.progress.best_step
        if self.has_strength:
            return False
        if self.keeps_by_pairs and self.keep == "best" and self.record.validations and self.initial:
            if best_step is None:
                restore_values(self.model, self.initial)
            return best_step is None
        if best_step is None or not self.initial or (self.record.any_step_is_better() and not self.continues):
            return False
        trained = trained_values(self.model)
        restore_values(self.model, self.initial)
        best = min(look.loss for look in self.record.validations if look.step)
        if self.scores.score(loop, self.scores.validation_windows, 0).loss <= best:
            return True
        restore_values(self.model, trained)
        return False

    def _take_strength(self, loop: TrainingLoop, kept: int) -> int:
        """Multiply the update of the kept step by its strength, and return the step: 0 if the strength is 0."""
        record, scores = self.record, self.scores
        for look in looks(record):
            if look.step == kept and look.half:
                record.strength = self._measured_strength(loop, look)
        if scores.base.data.summary.held_out.same_text and scores.start.config.validation == AUTO:
            record.strength = round(record.strength * OF_ONE_TEXT, 3)
        if record.strength < 1:
            self.display.print(Detail(strength_note(record.strength, record.strength_losses)))
        if record.strength == 0:
            restore_values(self.model, self.initial)
            return 0
        multiply_update(self.model, record.strength)
        return kept

    def _measured_strength(self, loop: TrainingLoop, look: Look) -> float:
        """Return the strength with the lowest measured loss; of questions 1, unless another is certainly lower."""
        results, windows = look.results, self.scores.validation_windows
        if look.strength not in results:
            whole = trained_values(self.model)
            multiply_update(self.model, look.strength)
            results[look.strength] = self.scores.score(loop, windows)
            restore_values(self.model, whole)
        losses = self.record.strength_losses = {strength: one.loss for strength, one in results.items()}
        lowest = min(losses, key=lambda strength: losses[strength])
        if isinstance(windows[0].record, Document) or is_certainly_lower(Look(results[lowest]), Look(look.whole)):
            return lowest
        return 1.0
