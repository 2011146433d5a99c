"""Evaluate and sample during a run, and keep its record up to date."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tsugiki.base.context import context_length
from tsugiki.lora.graft import disable_adapter, is_grafted
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.evaluate import Window, evaluate
from tsugiki.train.evaluation.result import StepEvaluation
from tsugiki.train.evaluation.sample import Sampling, generate_text
from tsugiki.train.preparation import PackedDataset
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import LossPoint, RunRecord, Sample, TrainingFigures, peak_memory
from tsugiki.train.trainer import RunTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EVALUATIONS_PER_RUN = 5


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates and samples before the first step, at regular steps and at the end, and writes `run.json`."""

    def __init__(
        self,
        trainer: RunTrainer,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        data: PackedDataset,
        config: RunConfig,
        record: RunRecord,
        progress: RunProgress,
    ) -> None:
        self.trainer, self.model, self.tokenizer = trainer, model, tokenizer
        self.data, self.config, self.record, self.progress = data, config, record, progress
        # The context that remains after the adapter's soft prompt, if any. The base is evaluated with it as well, so
        # that both are scored on the same pieces of text.
        self.context = context_length(model)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate the base model. Most new adapters do not change it, but an untrained soft prompt does."""
        if state.global_step == 0:
            with disable_adapter(self.model) if is_grafted(self.model) else nullcontext():
                self._evaluate(0)
                self._evaluate_retention(0)
                self._sample(0)
        self.progress.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the step, and evaluate and sample if it is time."""
        step, total = state.global_step, state.max_steps
        self.progress.step(step, total, self.trainer.step_loss, self.trainer.meters.tokens_per_second)
        if _is_due(step, total, self.config.eval_steps or max(1, total // _EVALUATIONS_PER_RUN)):
            self._evaluate(step)
        if step == total:
            self._evaluate_retention(step)
        if _is_due(step, total, self.config.sample_steps or max(1, total // 2)):
            self._sample(step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Copy the loss curve into the record."""
        self.record.loss_curve = [LossPoint.model_validate(entry) for entry in state.log_history if "loss" in entry]
        # The record is rewritten up to 500 times in a run, and flushing it each time would slow a run of quick steps.
        self._write_record(durable=False)

    def _evaluate(self, step: int) -> None:
        result = self._score(step, self.data.windows)
        self.record.evaluations.append(result)
        self.progress.evaluation(result)
        self._write_record()

    def _evaluate_retention(self, step: int) -> None:
        if self.data.retention_windows:
            result = self._score(step, self.data.retention_windows)
            self.record.retention_evaluations.append(result)
            self.progress.say(f"step {step}  retention loss {result.loss:.4f}")
            self._write_record()

    def _score(self, step: int, windows: list[Window]) -> StepEvaluation:
        with self.progress.stage("evaluating", len(windows)) as advance:
            result = evaluate(self.model, self.tokenizer, windows, self.config.assistant_turns, advance, self.context)
        return StepEvaluation(step=step, **dict(result))

    def _sample(self, step: int) -> None:
        sampling = replace(Sampling(), max_new_tokens=self.config.sample_tokens, seed=self.config.seed)
        for prompt in self.config.prompts:
            text = generate_text(self.model, self.tokenizer, prompt, sampling)
            sample = Sample(step=step, prompt=prompt, text=text)
            self.record.samples.append(sample)
            self.progress.sample(sample)
        self._write_record()

    def _write_record(self, *, durable: bool = True) -> None:
        meters = self.trainer.meters
        self.record.training = TrainingFigures(
            steps=self.trainer.state.global_step,
            loss=meters.loss,
            tokens=meters.tokens,
            seconds=meters.seconds,
            tokens_per_second=meters.tokens_per_second,
            peak_memory=peak_memory(),
        )
        self.record.write(Path(self.config.out), durable=durable)


def _is_due(step: int, total: int, every: int) -> bool:
    """Return whether a step is the last one, or a multiple of `every` that is not shortly before the last one."""
    return step == total or (step % every == 0 and total - step > every // 2)
