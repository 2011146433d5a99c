"""Looks at a run from outside at chosen steps: measures the held-out text, lets the model write, keeps the record."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tsugiki.base.context import context_length
from tsugiki.lora.graft import disable_adapter, is_grafted
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.evaluate import Window, evaluate
from tsugiki.train.evaluation.sample import Sampling, generate_text
from tsugiki.train.preparation import PackedDataset
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import RunRecord, peak_memory
from tsugiki.train.trainer import RunTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EVALUATIONS = 5


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates and samples before the first step, at chosen steps, and at the end."""

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
        self.context = context_length(model)
        """Of the model as it trains: the base is measured on the same windows, whatever a soft prompt takes."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the base: what most fresh adapters leave as it is, but an untrained soft prompt does not."""
        if state.global_step == 0:
            with disable_adapter(self.model) if is_grafted(self.model) else nullcontext():
                self._evaluate(0)
                self._evaluate_retention(0)
                self._sample(0)
        self.progress.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the step; measure and sample where it is time."""
        step, total = state.global_step, state.max_steps
        self.progress.step(step, total, self.trainer.step_loss, self.trainer.meters.tokens_per_second)
        if _due(step, total, self.config.eval_steps or max(1, total // _EVALUATIONS)):
            self._evaluate(step)
        if step == total:
            self._evaluate_retention(step)
        if _due(step, total, self.config.sample_steps or max(1, total // 2)):
            self._sample(step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the loss curve."""
        self.record.loss_curve = [
            {name: entry[name] for name in ("step", "loss", "learning_rate")}
            for entry in state.log_history
            if "loss" in entry
        ]
        self._keep()

    def _evaluate(self, step: int) -> None:
        entry = self._measure(step, self.data.windows)
        self.record.evaluations.append(entry)
        self.progress.evaluation(entry)
        self._keep()

    def _evaluate_retention(self, step: int) -> None:
        if self.data.retention_windows:
            entry = self._measure(step, self.data.retention_windows)
            self.record.retention_evaluations.append(entry)
            self.progress.say(f"step {step}  retention loss {entry['loss']:.4f}")
            self._keep()

    def _measure(self, step: int, windows: list[Window]) -> dict[str, Any]:
        with self.progress.stage("measuring", len(windows)) as advance:
            result = evaluate(self.model, self.tokenizer, windows, self.config.assistant_turns, advance, self.context)
        return {"step": step, **result.to_json()}

    def _sample(self, step: int) -> None:
        sampling = replace(Sampling(), max_new_tokens=self.config.sample_tokens, seed=self.config.seed)
        for prompt in self.config.prompts:
            entry = {"step": step, "prompt": prompt, "text": ""}
            entry["text"] = generate_text(self.model, self.tokenizer, prompt, sampling)
            self.record.samples.append(entry)
            self.progress.sample(entry)
        self._keep()

    def _keep(self) -> None:
        meters = self.trainer.meters
        self.record.training |= {
            "steps": self.trainer.state.global_step,
            "loss": meters.loss,
            "tokens": meters.tokens,
            "seconds": meters.seconds,
            "tokens_per_second": meters.tokens_per_second,
            "peak_memory": peak_memory(),
        }
        self.record.write(Path(self.config.out))


def _due(step: int, total: int, every: int) -> bool:
    """At the end, and at each multiple of `every` that is not just before it."""
    return step == total or (step % every == 0 and total - step > every // 2)
