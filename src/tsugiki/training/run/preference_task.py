"""What a run that learns preferences has besides that of any other run: its loss, the reference, and scores of pairs.

The log-probabilities under the reference are kept in the cache, two numbers for each pair. They depend on the base, the
adapter that training begins with, the tokens and how these are computed, and not on the settings of the loss. So a
resumed run, or another one with a different beta, does not compute them again. Several processes compute them together
and keep nothing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsugiki.base.identity import identity_of
from tsugiki.io.cache import kept
from tsugiki.language import _
from tsugiki.preference.losses import LOSSES
from tsugiki.training.data.packing import PackedAnswers
from tsugiki.training.record.pairs import StepPairs
from tsugiki.training.score.answers import score_answers, scores_of
from tsugiki.training.step.preference_loss import AnswerLoss, Mismatched, training_reference
from tsugiki.training.step.setup import build_loop

if TYPE_CHECKING:
    from tsugiki.training.run.stages import Run

_UNUSUAL = 9.0  # times as large or as small as the default


@dataclass(eq=False)
class PreferenceTask:
    """The loss and the answers of a run that learns preferences."""

    loss: AnswerLoss
    """The loss of each step. `compute_reference` gives it the log-probabilities under the reference."""
    answers: PackedAnswers
    references: dict[str, Tensor] = field(default_factory=dict)
    """Part of the data (training, held_out or validation) -> log-probabilities under the reference, [records].

    It is empty for a loss without a reference, and before `compute_reference`.
    """

    @property
    def is_paired(self) -> bool:
        """Whether there are two answers to each prompt."""
        return self.answers.training.preferences.size == 2

    def scores(self, run: "Run", part: str, step: int) -> StepPairs:
        """Return how often the model of the run, as it is after `step` steps, is right about a part of the data."""
        rows = self.answers.parts[part]
        values = score_answers(run.model, rows, run.data.document_masking, run.accelerator)
        reference = self.references.get(part)
        return StepPairs(
            step=step, **dict(scores_of(rows, self.loss.loss.score, values, reference, self.loss.of_pairs))
        )


def preference_task(run: "Run") -> PreferenceTask | None:
    """Return the task of a run whose data are packed; None for a run that learns texts."""
    name, answers = run.config.preference, run.data.answers
    if name is None or answers is None:
        return None
    settings = run.config.loss_settings()
    run.notes.extend(_setting_notes(name, settings))
    likelihood = settings.pop("likelihood")
    return PreferenceTask(AnswerLoss(answers.training, LOSSES[name], settings, likelihood), answers)


def _setting_notes(name: str, settings: Mapping[str, float]) -> Iterator[str]:
    """Yield notes on a beta that fits other losses, and on a loss that does not keep the text."""
    usual, beta = LOSSES[name].defaults.get("beta"), settings.get("beta")
    if usual and beta is not None and not usual / _UNUSUAL < beta < usual * _UNUSUAL:
        message = _(
            "beta is {beta:g}; for {name}, {usual:g} is usual, because losses that compare log-probabilities per token "
            "need a beta that is about 50 times as large as those that compare whole answers"
        )
        yield message.format(beta=beta, name=name, usual=usual)
    if not settings["likelihood"] and not LOSSES[name].contains_likelihood:
        message = _(
            "{name} without the likelihood of the chosen answers: small models then forget how to write; "
            "--preference-settings likelihood=1 keeps the text"
        )
        yield message.format(name=name)


def compute_reference(run: "Run") -> None:
    """Compute the log-probabilities of all answers with the model as it is before the first step."""
    task = run.preference
    if task is None:
        return
    if task.loss.loss.needs_reference:
        steps = -(-len(run.data.blocks) // run.choices.batch_size)
        with run.display.stage(_("computing the reference"), steps) as advance:
            if run.accelerator.num_processes > 1:
                values = _log_probabilities(run, task, advance)
            else:
                values = kept("references", _key(run, task), lambda: _log_probabilities(run, task, advance))
        task.references = {part: torch.tensor(numbers) for part, numbers in values.items()}
        task.loss.reference = task.references["training"]
    if run.config.preference == "kto":
        task.loss.mismatched = Mismatched.of(
            run.model, task.answers.training, run.data.document_masking, run.accelerator
        )


def _key(run: "Run", task: PreferenceTask) -> str:
    """Return everything that the log-probabilities depend on."""
    started = run.record.started_from
    return json.dumps(
        {
            "base": identity_of(run.model).model_dump(mode="json"),
            "adapter": None if started is None else started.model_dump(mode="json"),
            "method": [run.config.method, run.config.to_record().get("lora"), run.config.method_config],
            "seed": run.config.seed,
            "rows": {part: rows.blocks.fingerprint() for part, rows in task.answers.parts.items()},
            "masking": run.data.document_masking,
            "dtypes": [str(run.model.dtype), run.facts.dtype, run.resolved.get("product_dtype")],
            "attention": run.model.config.get_text_config()._attn_implementation,
            "device": run.device.type,
            "torch": torch.__version__,
        },
        sort_keys=True,
    )


def _log_probabilities(run: "Run", task: PreferenceTask, advance: Callable[[int], None]) -> dict[str, list[float]]:
    """Return part of the data -> log-probabilities [records]. Those of training are computed as in its steps."""
    masking = run.data.document_masking
    loop = build_loop(run.accelerator, run.config, run.choices, run.model, run.data.blocks, masking, task.loss)
    found = {"training": training_reference(loop.gradients, task.answers.training, run.accelerator, advance)}
    for part, rows in task.answers.parts.items():
        if part != "training":
            found[part] = score_answers(run.model, rows, masking, run.accelerator)
    return {part: values.tolist() for part, values in found.items()}
