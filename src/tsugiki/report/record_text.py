"""Sentences, hints and tables about the record of a run, for pages, model cards, the terminal and the server."""

import math
import shlex
from collections.abc import Sequence

from tsugiki.data.tokenizer_coverage import LITTLE_TEXT, Coverage
from tsugiki.language import _, counts, listed, marked
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import format_number, format_with_interval
from tsugiki.report.pairs import pair_notes
from tsugiki.report.rewards import reward_sentence
from tsugiki.report.sections import Note, Sentence
from tsugiki.report.table import Table
from tsugiki.training.choose.decisions import LEVEL
from tsugiki.training.record.interval import Change, Interval, change_interval
from tsugiki.training.record.result import Evaluation, StepEvaluation, change_of_bits, change_of_share, is_too_little
from tsugiki.training.record.run_record import DataSummary, RecordCounts, RunRecord

_FEW = 0.02  # share of tokens outside the loss; the first token of each document is one
_MUCH_FORGOTTEN = 0.03  # relative rise of the loss on the retention text
_FEW_STEPS = 20
_RISE = 0.02  # of the loss above its lowest value, relative
_STILL_FALLING = 0.2  # share of the whole gain that came after the last evaluation but one
_NO_CHANGE = 0.002  # relative
_SMALLEST_SHOWN = 0.05  # percent
_DOCUMENT_MASKING = {
    "position_ids": marked("masked from each other by position ids"),
    "attention_mask": marked("masked from each other by an attention mask"),
    "separate_rows": marked("in separate rows"),
}


def summary_sentence(record: RunRecord) -> str:
    """Return what was learned in one sentence: the result on what was held out, and how certain it is."""
    if record.rounds:
        return reward_sentence(record)
    if record.data is not None and not record.data.held_out.documents:
        return _("Nothing is held out, so nothing is measured on text that the run has not seen.")
    if not record.evaluations:
        return _("There is no evaluation yet.")
    if len(record.pair_evaluations) > 1:
        return _pairs_sentence(record)
    if len(record.answers) > 1 and record.answers[-1].counted:
        return _answers_sentence(record)
    after, change = record.evaluations[-1], change_of_run(record)
    if is_too_little(after):
        return _(
            "The text kept aside has only {characters}, too few to say by how many percent anything has changed.",
            characters=counts.characters(after.characters),
        )
    if len(record.evaluations) > 1 and not math.isnan(change.relative):
        return _bits_sentence(record, change)
    message = _("At step {step} the held-out text needs {figures}; there is no later evaluation yet.")
    if len(record.evaluations) > 1:
        message = _("At step {step} the held-out text needs {figures}; the change cannot be computed.")
    figures = _(
        "{bits} bits per character (loss {loss})",
        bits=format_number(after.bits_per_char),
        loss=format_number(after.loss),
    )
    return message.format(step=after.step, figures=figures)


def _bits_sentence(record: RunRecord, change: Change) -> str:
    """Say how many bits are saved, and how certain this is."""
    share, interval = 100 * change.relative, change.interval
    amount = _("{share:.1f} % fewer bits per character") if share < 0 else _("{share:.1f} % more bits per character")
    certainty = ""
    if abs(share) < _SMALLEST_SHOWN:
        amount = _("as many bits per character as the base")
    elif interval is not None:
        low, high = sorted(100 * abs(end) for end in interval)
        certainty = _(" (95 % interval {low:.1f} to {high:.1f} %)", low=low, high=high)
        if interval[0] < 0 < interval[1]:
            certainty = _(", a difference that may be due to chance")
    last = record.evaluations[-1]
    message = _("On {texts} that it has not seen, {what} needs {amount}{certainty}.")
    texts = counts.questions(len(last.documents)) if record.answers else counts.texts(change.documents)
    if record.data is not None and record.data.held_out.same_text:
        message = _("On {texts}, {what} needs {amount}{certainty}; other texts were not measured.")
        texts = _("the last {characters} of the same text")
        if last.characters < record.data.held_out.characters:
            texts = _("{characters} of the end of the same text")
        texts = texts.format(characters=counts.characters(last.characters))
    said = message.format(texts=texts, what=_what(record), amount=amount.format(share=abs(share)), certainty=certainty)
    return said + _best_and_worst(record)


def _best_and_worst(record: RunRecord) -> str:
    """Return which held-out texts gain most and least, if the 95 % intervals over their windows are apart; else "".

    Of eight texts that gain alike, the intervals of two are apart in 2 to 8 % of runs (simulated).
    """
    both, found = (record.evaluations[0], record.evaluations[-1]), []
    for number, name in enumerate(record.data.held_out.names if record.data else ()):
        scores = ([s for s, group in zip(one.documents, one.groups, strict=False) if group == number] for one in both)
        if interval := change_interval(*scores):
            found.append((sum(interval) / 2, interval, name))
    if not found or min(found)[1][1] >= max(found)[1][0]:
        return ""
    message = _(" The texts differ by more than chance: {best:+.1%} on {name}, {worst:+.1%} on {other}.")
    (best, _interval, name), (worst, _interval, other) = min(found), max(found)
    return message.format(best=best, name=name, worst=worst, other=other)


def _answers_sentence(record: RunRecord) -> str:
    """Say how many questions are answered as expected, and how certain it is that these are more than before."""
    before, after = record.answers[0], record.answers[-1]
    _gain, (low, high) = change_of_share(before, after)
    certainty = ""
    if low > 0 or high < 0:
        certainty = _(" (95 % interval of the difference {low:+.0f} to {high:+.0f} percentage points)")
    elif before.correct != after.correct:
        certainty = _(", a difference that may be due to chance")
    message = _(
        "On {questions} that it has not seen, {what} gives exactly the expected answer to {after:,}, the base to "
        "{before:,}{certainty}."
    )
    asked, certainty = counts.questions(after.questions), certainty.format(low=100 * low, high=100 * high)
    correct = {"before": before.correct, "after": after.correct}
    return message.format(questions=asked, what=_what(record), certainty=certainty, **correct)


def _pairs_sentence(record: RunRecord) -> str:
    """Say of how many pairs, or single answers, the run is right."""
    before, after = record.pair_evaluations[0], record.pair_evaluations[-1]
    share, low, high, start = (100 * one for one in (after.accuracy, *after.accuracy_interval, before.accuracy))
    message = _(
        "Of {pairs} that it has not seen, {what} gets {share:.1f} % right (95 % interval {low:.1f} to {high:.1f} %), "
        "against {start:.1f} % at the start."
    )
    pairs = (counts.examples if after.likelier is None else counts.pairs)(after.pairs)
    return message.format(pairs=pairs, what=_what(record), share=share, low=low, high=high, start=start)


def _what(record: RunRecord) -> str:
    return _("the model") if family_of(record.config.method) == "full fine-tuning" else _("the adapter")


def speed_text(record: RunRecord) -> str:
    """Return the speed of a run in tokens per second, as other tools report it: tokens outside the loss count, too.

    If there are such tokens, as in conversations, the speed without them is named as well.
    """
    both, in_loss = record.all_tokens_per_second(), record.training.tokens_per_second if record.training else 0.0
    if both <= in_loss * (1 + _FEW):
        return _("{speed:,.0f} tokens/s", speed=in_loss)
    return _("{speed:,.0f} tokens/s, {in_loss:,.0f} of them in the loss", speed=both, in_loss=in_loss)


def change_of_run(record: RunRecord) -> Change:
    """Return the change of the held-out bits per character from the first to the last evaluation of a run."""
    return change_of_bits(record.evaluations[0], record.evaluations[-1])


def held_out_table(record: RunRecord) -> Table:
    """Return the held-out figures before and after training, with 95 % intervals; no rows if one of them is missing."""
    rows = []
    if len(record.evaluations) > 1:
        figures = zip(_figures_of(record.evaluations[0]), _figures_of(record.evaluations[-1]), strict=True)
        for (label, before, before_interval), (_same, after, after_interval) in figures:
            texts = format_with_interval(before, before_interval), format_with_interval(after, after_interval)
            rows.append([label, *texts, "–" if is_too_little(record.evaluations[-1]) else _relative(before, after)])
    title = _("held-out chosen answers") if record.pair_evaluations else _("held-out text")
    return Table([title, _("before"), _("after"), _("change")], rows)


def run_notes(record: RunRecord) -> list[Sentence]:
    """Return the decisions that a run made from its losses, and hints from its figures; what is wrong is a `Note`.

    A run that learns by a reward has none: its table says what there is to know.
    """
    notes: list[Sentence] = []
    if record.rounds:
        return notes
    for restart in record.restarts:
        message = _(
            "The training loss rose until step {step:,} at a learning rate of {rate:g}, so the run began again with a "
            "third of it.",
            step=restart.step,
            rate=restart.learning_rate,
        )
        notes.append(Sentence(message))
    if record.kept_step == 0:
        message = _(
            "Nothing that was learned helps on the validation text, so the adapter stays as it was at the start (step "
            "0): the text is short, or like what the model knows already."
        )
        notes.append(Note(message))
    elif record.strength == 1 and not record.any_step_is_better():  # a part of the update may be better
        message = _(
            "No step was better than the base on the validation text: the learning rate is too high, or the text "
            "is short, or like what the base knows already."
        )
        notes.append(Note(message))
    retention = [entry.loss for entry in record.retention_evaluations]
    rise = retention[-1] / retention[0] - 1 if retention else 0.0
    if rise > _MUCH_FORGOTTEN:
        message = _(
            "The loss on the retention text rose by {rise:.1%}: with {flag:mix} FILE:0.1, a run trains on such text as "
            "well and forgets less.",
            rise=rise,
        )
        notes.append(Note(message))
    if len(record.general_answers) > 1:
        before, after = record.general_answers[0], record.general_answers[-1]
        message = _("Of {asked:,} general questions, the base answers {before:,} as expected, {what} {after:,}.")
        right = {"before": before.correct, "after": after.correct}
        notes.append(Sentence(message.format(asked=after.questions, what=_what(record), **right)))
    return [*notes, *pair_notes(record), *hints(record), *_writing_note(record)]


def _writing_note(record: RunRecord) -> list[Sentence]:
    """Return what a finished run on plain text has not taught."""
    is_finished = record.status == "finished" and record.data is not None and record.data.held_out.documents
    if not is_finished or _has_questions(record) or record.pair_evaluations:
        return []
    message = _(
        "A text teaches how to write, not what to answer. To teach answers, train on questions that have them: "
        "docs/tutorial-questions.md"
    )
    return [Sentence(message)]


def data_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the counts of a run's data."""
    size = data.blocks * data.block_size
    mixed = []
    if data.mixed:
        mixed = [(_("of these mixed in"), listed([counts.records(data.mixed.documents), f"{data.mixed.share:.1%}"]))]
    return [
        (_("training data"), _size(data.train)),
        *mixed,
        (_("held out"), _size(data.held_out)),
        *_validation_line(data),
        *([(_("left out"), _size(data.left_out))] if data.left_out and data.left_out.documents else []),
        (_("tokens per epoch"), f"{data.tokens_per_epoch:,}"),
        (
            _("target tokens per epoch"),
            listed(
                [f"{data.target_tokens_per_epoch:,}", f"{data.target_tokens_per_epoch / data.tokens_per_epoch:.1%}"]
            ),
        ),
        (
            _("rows"),
            _(
                "{rows:,} of {size} tokens, {padding:.1%} padding",
                rows=data.blocks,
                size=data.block_size,
                padding=data.padding / size,
            ),
        ),
        (_("documents in a row"), _(_DOCUMENT_MASKING[data.document_masking])),
        (_("continue in other rows"), counts.documents(data.split_records)),
        (_("cut off"), listed([counts.examples(data.cut_records), counts.tokens(data.cut_tokens)])),
        (
            _("near-duplicates"),
            _(
                "{records} in {groups}",
                records=counts.records(data.near_duplicates.records),
                groups=counts.groups(data.near_duplicates.groups),
            ),
        ),
    ]


def near_duplicate_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the first groups of near-duplicates: the names of their records."""
    return [(_("  group"), " · ".join(group)) for group in data.near_duplicates.first]


def _figures_of(result: Evaluation) -> list[tuple[str, float, Interval | None]]:
    return [
        (_("loss"), result.loss, result.loss_interval),
        (_("perplexity"), result.perplexity, result.perplexity_interval),
        (_("bits per character"), result.bits_per_char, result.bits_per_char_interval),
    ]


def _relative(before: float, after: float) -> str:
    finite = before and math.isfinite(before) and math.isfinite(after)
    return f"{after / before - 1:+.1%}" if finite else "–"


def _size(part: RecordCounts) -> str:
    return listed([counts.records(part.documents), counts.characters(part.characters)])


def _validation_line(data: DataSummary) -> list[tuple[str, str]]:
    validation = data.validation
    if validation is None:
        return []
    if validation.from_held_out:
        return [(_("validation"), _("every second window of the held-out records"))]
    return [(_("validation"), _size(validation))]


def hints(record: RunRecord) -> list[Sentence]:
    """Return hints for the user from the record of a run; empty for a run that has just begun.

    A run on questions that answers more of those that were held out was to learn its text by heart, so none says so. No
    two hints ask for the opposite of each other: a short text, and a run that is worse than the base, need no more
    steps.
    """
    better = len(record.answers) > 1 and record.answers[-1].correct > record.answers[0].correct
    facts = [_falling_hint(record)] if better else [_short_hint(record), _loss_hint(record)]
    wrong = [*_text_hints(record), "" if better else _result_hint(record), _sample_hint(record)]
    return [*map(Sentence, filter(None, facts)), *map(Note, filter(None, wrong))]


def _has_questions(record: RunRecord) -> bool:
    """Return whether the run learned from questions or conversations, as far as its record tells."""
    return bool(record.answers) or (record.data is not None and record.data.learns_conversations)


def _helps_nowhere(record: RunRecord) -> bool:
    """Return whether nothing that was learned is better than the base on the validation text."""
    return record.kept_step == 0 or not record.any_step_is_better()


def _short_hint(record: RunRecord) -> str:
    """Return a hint if there is little text that is no list of questions; else ""."""
    if record.data is None or _has_questions(record) or record.data.train.characters >= LITTLE_TEXT:
        return ""
    return _(
        "The training text is short ({characters}): it is soon learned by heart. More text helps most; more steps do "
        "not.",
        characters=counts.characters(record.data.train.characters),
    )


def _text_hints(record: RunRecord) -> list[str]:
    data = record.data
    if data is None:
        return []
    coverage = Coverage(data.unknown_share, data.piece_share, data.letter_share)
    return [note[:1].upper() + note[1:] for note in coverage.notes()]


def _loss_curve(record: RunRecord) -> Sequence[StepEvaluation]:
    """Return the results on text that was not trained on: on the validation text if there are several.

    The last of the held-out text is left out if the adapter has a part of its update by then.
    """
    if len(record.validations) > 1:
        return record.validations
    return record.evaluations[:-1] if record.strength < 1 else record.evaluations


def _is_falling(points: Sequence[StepEvaluation], share: float = _STILL_FALLING) -> bool:
    """Return whether a share of what was gained came after the last point but one."""
    gained, last = points[0].loss - points[-1].loss, points[-2].loss - points[-1].loss
    is_lowest = min(points, key=lambda point: point.loss) is points[-1]
    return is_lowest and gained > 0 and last > share * gained


def _falling_hint(record: RunRecord) -> str:
    """Return a hint with the command that continues a run, if its loss was still falling when its steps were done."""
    training, points = record.training, _loss_curve(record)
    if training is None or training.steps != record.resolved_settings.get("steps") or len(points) < 3:
        return ""
    if not _is_falling(points, LEVEL if _has_questions(record) else _STILL_FALLING):
        return ""
    command = ["tsugiki", "train", "--resume", record.config.out or "", "--max-steps", str(2 * training.steps)]
    return _(
        "The loss on text that was not trained on was still falling at the last step: `{command}` continues the run.",
        command=shlex.join(command),
    )


def _loss_hint(record: RunRecord) -> str:
    """Return a hint if the loss rose towards the end, or was still falling, or if there were few steps; else ""."""
    training, points = record.training, _loss_curve(record)
    if training is None or record.status != "finished":
        return ""
    if len(points) > 2:
        lowest = min(points[1:], key=lambda point: point.loss)
        last = points[-1]
        enough = not record.evaluations or not is_too_little(record.evaluations[-1])
        # With a strength, a rise is no loss.
        if last.loss > lowest.loss * (1 + _RISE) and enough and not record.half_validations:
            return _(
                "After step {step:,}, the loss on text that was not trained on rose by {rise:.1%}: the run learned its "
                "text by heart. Fewer {flag:epochs} or a lower {flag:learning_rate} avoid it; more text helps most.",
                step=lowest.step,
                rise=last.loss / lowest.loss - 1,
            )
    worse = len(record.evaluations) > 1 and change_of_run(record).relative > _NO_CHANGE
    if worse or _short_hint(record) or _helps_nowhere(record):
        return ""
    if hint := _falling_hint(record):
        return hint
    if training.steps >= _FEW_STEPS:
        return ""
    return _(
        "The run had only {steps}: more {flag:epochs} or a smaller {flag:batch_size} give more of them.",
        steps=counts.steps(training.steps),
    )


def _result_hint(record: RunRecord) -> str:
    """Return a hint if the result hardly differs from the base, or is worse; else ""."""
    if record.status != "finished" or len(record.evaluations) < 2 or _helps_nowhere(record):
        return ""
    change = change_of_run(record).relative
    if abs(change) < _NO_CHANGE and _short_hint(record):
        return ""  # which says what helps
    if abs(change) < _NO_CHANGE:
        points = _loss_curve(record)
        message = _(
            "The result hardly differs from the base ({change:+.2%}): a higher {flag:learning_rate} or more "
            "{flag:epochs} change more."
        )
        if len(points) > 2 and not _is_falling(points):
            message = _(
                "The result hardly differs from the base ({change:+.2%}), and the loss on text that was not trained on "
                "fell no further: the base knows such text already. More text helps; a higher {flag:learning_rate} "
                "does not."
            )
        return message.format(change=change)
    if change > 0:
        return _(
            "On the held-out text the result is worse than the base ({change:+.1%}): a lower {flag:learning_rate} "
            "or fewer {flag:epochs} may help, and so does more text.",
            change=change,
        )
    return ""  # also if the change is not a number


def _sample_hint(record: RunRecord) -> str:
    """Return a hint if the last samples of some prompts are empty; else ""."""
    last = [sample for sample in record.samples if sample.step == record.samples[-1].step]
    empty = sum(not sample.text.strip() for sample in last)
    if not empty:
        return ""
    return _(
        "For {empty:,} of {all:,} prompts the model wrote nothing: it ended the text at once. A chat model must be "
        "given a turn of a conversation, and plain text a beginning that goes on.",
        empty=empty,
        all=len(last),
    )
