"""What a run that learns preferences has besides that of any other run: its loss, the reference, and scores of pairs.

The log-probabilities under the reference are kept in the cache, two numbers for each pair. They depend on the base, the
adapter that training begins with, the tokens and how these are computed, and not on the settings of the loss. So a
resumed run, or another one with a different beta, does not compute them again. Several processes compute them together
and keep nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tsugiki.language import _
from tsugiki.preference.losses import LOSSES, kto
from tsugiki.preference.pairs import AnswerRows
from tsugiki.training.record.result import StepPairs
from tsugiki.training.run.load import kept_of_base
from tsugiki.training.run.start import Base, Ready, Start, loop_of
from tsugiki.training.score.evaluate import score_answers, scores_of
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.step.preference_loss import AnswerLoss, Mismatched, training_reference

_UNUSUAL = 9.0  # times as large or as small as the default


def answer_loss(config: RunConfig, answers: Mapping[str, AnswerRows]) -> AnswerLoss:
    """Return the loss of each step of a run that learns answers. `add_reference` gives it the reference."""
    assert config.preference is not None
    settings = config.loss_settings()
    likelihood = settings.pop("likelihood")
    return AnswerLoss(answers["training"], LOSSES[config.preference], settings, likelihood)


def preference_notes(name: str, settings: Mapping[str, float]) -> Iterator[str]:
    """Yield notes on a beta that fits other losses, and on a loss that does not keep the text."""
    usual, beta = LOSSES[name].defaults.get("beta"), settings.get("beta")
    if usual and beta is not None and not usual / _UNUSUAL < beta < usual * _UNUSUAL:
        yield _(
            "beta is {beta:g}; for {name}, {usual:g} is usual, because losses that compare log-probabilities per token "
            "need a beta that is about 50 times as large as those that compare whole answers",
            beta=beta,
            name=name,
            usual=usual,
        )
    if not settings["likelihood"] and not LOSSES[name].contains_likelihood:
        yield _(
            "{name} without the likelihood of the chosen answers: small models then forget how to write; "
            "{flag:preference_settings likelihood=1} keeps the text",
            name=name,
        )


def add_reference(start: Start, base: Base, answers: Mapping[str, AnswerRows], ready: Ready) -> Ready:
    """Compute the log-probabilities of all answers with the model as it is before the first step, if a loss needs them.

    Only the loss and the references of the result are others.
    """
    loss = ready.loss
    assert isinstance(loss, AnswerLoss)
    references: dict[str, Tensor] = {}
    if loss.loss.needs_reference:
        steps = -(-len(base.data.blocks) // ready.choices.batch_size)
        with start.display.stage(_("computing the reference"), steps) as advance:

            def compute() -> dict[str, list[float]]:
                return _log_probabilities(start, base, ready, answers, advance)

            values = kept_of_base(start, base.model, base.dtype, _facts(start, base, ready, answers), compute)
        references = {part: torch.tensor(numbers) for part, numbers in values.items()}
        loss = replace(loss, reference=references["training"])
    if loss.loss.function is kto:
        mismatched = Mismatched.of(base.model, answers["training"], base.data.document_masking, start.accelerator)
        loss = replace(loss, mismatched=mismatched)
    return replace(ready, loss=loss, references=references)


def score_pairs(start: Start, base: Base, ready: Ready, part: str, step: int) -> StepPairs:
    """Return how often the model, as it is after `step` steps, is right about a part of the answers."""
    loss, answers = ready.loss, base.data.answers
    assert isinstance(loss, AnswerLoss)
    rows = answers[part]
    values = score_answers(base.model, rows, base.data.document_masking, start.accelerator)
    scores = scores_of(rows, loss.loss.score, values, ready.references.get(part), loss.of_pairs)
    return StepPairs(step=step, **dict(scores))


def _facts(start: Start, base: Base, ready: Ready, answers: Mapping[str, AnswerRows]) -> object:
    """Return everything that the log-probabilities depend on, besides the base."""
    config, rows = start.config, {part: rows.blocks.fingerprint() for part, rows in answers.items()}
    method = config.method, config.to_record().get("lora"), config.method_config
    computed = base.data.document_masking, ready.choices.micro_batch_size
    return "references", start.record.started_from, method, config.seed, rows, computed


def _log_probabilities(
    start: Start, base: Base, ready: Ready, answers: Mapping[str, AnswerRows], advance: Callable[[int], None]
) -> dict[str, list[float]]:
    """Return part of the data -> log-probabilities [records]. Those of training are computed as in its steps."""
    gradients = loop_of(start, base, ready.loss, ready.choices).gradients
    found = {"training": training_reference(gradients, answers["training"], start.accelerator, advance)}
    for part, rows in answers.items():
        if part != "training":
            found[part] = score_answers(base.model, rows, base.data.document_masking, start.accelerator)
    return {part: values.tolist() for part, values in found.items()}
