"""When a run evaluates and samples: before its first step, during it and at its end.

The main process alone samples, unless the weights are in shards; then all processes generate the same text.

The results of the base alone are kept in the cache (`training.run.load.kept_of_base`).

The texts that the model generates are those after its prompts, and answers to held-out questions, of a run whose data
have only questions: the first ones by the digest of the question, so that the choice depends on nothing else. An answer
is right if it is exactly the expected one (mode exact of `score.questions`). This is counted only if most expected
answers are short: of a long one, no two ways to say it are the same.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tsugiki.data.encoding import encode_records
from tsugiki.data.records import Message, question
from tsugiki.errors import TsugikiError
from tsugiki.generation.generate import generate_texts
from tsugiki.generation.sampling import Sampling
from tsugiki.io.digests import sha256
from tsugiki.io.formatting import format_duration
from tsugiki.io.progress import Detail
from tsugiki.language import _
from tsugiki.lora.hold import active_names, base_alone, is_grafted
from tsugiki.model.context import context_length
from tsugiki.training.choose.choices import is_due, plan_evaluations
from tsugiki.training.model.sharding import is_sharded
from tsugiki.training.record.result import StepAnswers
from tsugiki.training.record.run_record import Sample
from tsugiki.training.run.best_step import BestStep, has_strength
from tsugiki.training.run.load import kept_of_base
from tsugiki.training.run.scores import RecordFile, RunScores
from tsugiki.training.run.start import Base, Ready, Start
from tsugiki.training.score.questions import answer_questions, question_of, read_questions
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.step.loop import Callback, TrainingLoop
from tsugiki.training.tools.processes import on_main

_TIMED, _WORTH_SAYING = 3, 10
"""The step after which a run says how long it may take: the first ones are slower."""


class EvaluationCallback(Callback):
    """Evaluates and samples before the first step, during the run and at the end, and writes `run.json`.

    During the run, the validation text is evaluated if there is one, with the base at the first time, and decides which
    step is kept (`BestStep`). The held-out text does not influence this: it is evaluated at the end, with the base and
    then with the kept step. So training begins earlier. If the base's weights train, the base is evaluated before the
    first step; without a validation text, so is the base of every run, and the text is evaluated during the run, too.
    """

    def __init__(
        self, start: Start, base: Base, ready: Ready, restore: Callable[[int], bool], initial: dict[str, Tensor]
    ) -> None:
        """Create it for a run that is ready for its first step; its record gets the results.

        `restore` and `initial` are as in `BestStep`.
        """
        self.start, self.config, self.base = start, start.config, base
        self.record, self.display = start.record, start.display
        self.model, keep = base.model, ready.choices.keep
        strength = has_strength(keep, self.model, initial, bool(base.data.answers))
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
        # The display adds this to the time left: what was computed here is computed again after the last step.
        self.display.begin(loop.steps, loop.progress.step, after=time.monotonic() - started)

    def _evaluate_base(self, loop: TrainingLoop) -> None:
        """Evaluate the base and sample from it."""
        with base_alone(self.model):
            if not self._base_can_wait():
                self.scores.evaluate(loop)
            self.scores.evaluate_retention(loop)
            if self._validates_base() and not self._base_can_wait():
                self.scores.validate(loop)
            self._sample(loop, 0)

    def _base_can_wait(self) -> bool:
        """Return whether the base is evaluated when its figures are needed, not before the first step.

        It is scored on the validation text at the first look, and on the held-out text after the last step. With a
        tracker, it is evaluated before the first step: trackers expect metrics in the order of the steps.
        """
        return is_grafted(self.model) and self._validates_base() and not self.config.report_to

    def _validates_base(self) -> bool:
        return bool(self.scores.validation_windows and self.plan.evaluations)

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Show the step, and evaluate and sample if this is due."""
        step, total = loop.progress.step, loop.steps
        data = self.base.data.summary
        all_per_target = data.tokens_per_epoch / max(1, data.target_tokens_per_epoch)
        self.display.step(step, total, loop.step_loss, loop.progress.tokens_per_second * all_per_target)
        seconds = loop.progress.seconds / step * total
        if step == _TIMED and seconds >= _WORTH_SAYING:
            is_bound = loop.open_schedule is not None
            about = _("the steps take at most about {time}") if is_bound else _("the steps take about {time}")
            self.display.print(about.format(time=format_duration(seconds)))
        if loop.progress.loss_curve and loop.progress.loss_curve[-1].step == step:
            self.file.write_at_times(loop.progress)
        if self.plan.is_due(step, total, self.config.eval_steps):
            if self.scores.validation_windows:
                if not self.record.validations:
                    with base_alone(self.model):
                        self.scores.validate(loop, 0)
                self.best_step.look(loop)
            elif step < total:
                self.scores.evaluate(loop)
        sample_steps = self.config.sample_steps or max(1, total // 2)
        if step < total and not loop.progress.stopped and is_due(step, total, sample_steps):
            self._sample(loop)

    def on_train_end(self, loop: TrainingLoop) -> None:
        """Restore the weights of the best step, and evaluate and sample with them."""
        if is_grafted(self.model) and not self.record.evaluations:
            with base_alone(self.model):
                self.scores.evaluate(loop, 0)
        schedule = loop.open_schedule
        by_validation = loop.progress.stopped or (schedule is not None and schedule.by_validation)
        self.record.ended_by = "validation" if by_validation else "length" if self.config.has_length else "bound"
        kept = self.record.kept_step = self.best_step.take(loop)
        self.scores.evaluate(loop, kept)
        self.scores.evaluate_pairs(loop, kept)
        self.scores.evaluate_retention(loop, kept)
        self._sample(loop, kept)

    def _sample(self, loop: TrainingLoop, step: int | None = None) -> None:
        """Sample; before the first step and at the end, where the step is given, answer questions as well."""
        at, config, base = loop.progress.step if step is None else step, self.config, self.base

        def generate() -> dict[str, Any]:
            with self.display.stage(_("sampling"), None):
                found = [sample.model_dump() for sample in samples(config, base, at)]
                answers = None if step is None else held_out_answers(config, base, at)
                general = None if step is None else general_answers(base, at)
            asked = {"answers": answers, "general_answers": general}
            return {"samples": found} | {name: one.model_dump(mode="json") for name, one in asked.items() if one}

        def add() -> None:
            of_text = base.data.summary.digest, base.data.summary.learns_conversations, base.data.windows
            of_samples = config.prompts, config.system, config.seed, config.sample_tokens, torch.get_num_threads()
            is_base = step == 0 and not active_names(self.model)
            facts = "samples", of_text, of_samples, base.data.general
            found = kept_of_base(self.start, base.model, base.dtype, facts, generate) if is_base else generate()
            for sample in map(Sample.model_validate, found["samples"]):
                self.record.samples.append(sample)
                text = sample.text.rstrip().replace("\n", "⏎")
                self.display.print(
                    Detail(_("step {step}  {prompt}{text}", step=sample.step, prompt=sample.prompt, text=text))
                )
            for name in found.keys() - {"samples"}:
                getattr(self.record, name).append(StepAnswers.model_validate(found[name]))
            self.file.write(loop.progress)

        add() if is_sharded(self.model) else on_main(loop.accelerator, add)


_COUNTED, _SHOWN = 16, 3
"""Questions that are answered, in one batch, if right answers are counted, and if not."""
_GENERAL = 24  # tokens of an answer to a general question
_SHORT = 100  # characters of an expected answer


def samples(config: RunConfig, base: Base, step: int) -> Iterator[Sample]:
    """Yield a text for each prompt, generated by the model as it is after a step."""
    is_chat, system = base.data.summary.learns_conversations, config.system
    opening = [] if system is None else [Message("system", system)]
    prompts = [[*opening, Message("user", prompt)] if is_chat else prompt for prompt in config.prompts]
    texts = generate_texts(base.model, base.tokenizer, prompts, config.sample_tokens, Sampling(seed=config.seed))
    for prompt, text in zip(config.prompts, texts, strict=True):
        yield Sample(step=step, prompt=prompt, text="\n" * is_chat + text)


def general_answers(base: Base, step: int) -> StepAnswers | None:
    """Return the answers of the model as it is after a step to general questions that it has not learned.

    None if it does not learn conversations, or the questions cannot be asked (see `run.load.answers_of`).
    """
    if base.data.general is None:
        return None
    try:
        answers = answer_questions(base.model, base.tokenizer, read_questions(base.data.general.known), _GENERAL)
    except TsugikiError:
        return None
    return StepAnswers(step=step, counted=True, **dict(answers))


def held_out_answers(config: RunConfig, base: Base, step: int) -> StepAnswers | None:
    """Return the answers of the model as it is after a step to held-out questions; None if a text is held out."""
    records = {question(window.record): window.record for window in base.data.windows}
    if "" in records:
        return None
    ordered = [records[asked] for asked in sorted(records, key=lambda asked: sha256([asked.encode()]))]
    found = [
        (asked, encoded.target_tokens)
        for asked, encoded in zip(
            map(question_of, ordered), encode_records(base.tokenizer, ordered, "last"), strict=True
        )
        if asked is not None and len(encoded.ids) <= context_length(base.model)
    ]
    short = [one for one in found if len(one[0].expected[0]) <= _SHORT and one[1] <= config.sample_tokens]
    counted = not base.data.answers and 2 * len(short) > len(found)
    chosen = short[:_COUNTED] if counted else found[:_SHOWN]
    if not chosen:
        return None
    limit = max(tokens for _asked, tokens in chosen) if counted else config.sample_tokens
    answers = answer_questions(base.model, base.tokenizer, [asked for asked, _tokens in chosen], limit)
    return StepAnswers(step=step, counted=counted, **dict(answers))
