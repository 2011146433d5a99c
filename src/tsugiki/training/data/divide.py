"""Divide the data of a run: which rows are trained on, held out, chosen for validation, or left out.

read          settings               -> Corpus, tokens     `training.data.read`
divide        Corpus                 -> Part for a label   `data.splits`, by what the settings want
windows       parts                  -> windows, scored    `data.windows`: pieces of the text that is scored
leave out     training rows, scored  -> Part               `data.overlap`: rows that repeat scored text
mix           Division               -> Division           `data.mixing`: other text among the training rows
pack          Division               -> PackedDataset      `training.data.packing`: for a model

`training.data.notes` words what is unusual. Prompts of a run with a reward have no answers, so they are divided only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.blocks import Integers
from tsugiki.data.corpus import Corpus, Part
from tsugiki.data.mixing import Mixed, mix, parse_mix
from tsugiki.data.overlap import Kind, Repeated, ScoredTexts, repeated_text
from tsugiki.data.read.answers import PromptRow, read_answers, read_prompts
from tsugiki.data.read.files import Data, content_key, read_records, record_kinds
from tsugiki.data.records import NONE, Completion, Conversation, Document, Record
from tsugiki.data.splits import (
    VALIDATION,
    FieldCondition,
    Wanted,
    duplicates,
    kept_together,
    parse_held_out,
    rare,
    share_of,
    shorter_duplicates,
    split_records,
    split_validation,
)
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.data.windows import WINDOW_CHARACTERS, Window, evenly_spread, read_scored
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.progress import Detail, ProgressDisplay
from tsugiki.language import _
from tsugiki.preference.pairs import Preferences
from tsugiki.training.data import notes
from tsugiki.training.data.general import GeneralQuestions, general_questions
from tsugiki.training.data.read import data_digest, read_answers_of, read_file, read_store, read_texts, retention_source
from tsugiki.training.record.run_record import (
    HeldOutCounts,
    LeftOutCounts,
    MixedCounts,
    NearDuplicates,
    RecordCounts,
    SplitSummary,
    ValidationCounts,
)
from tsugiki.training.settings.config import AUTO, RunConfig

_FEWEST_DOCUMENTS = 5
"""Documents that are left out of training for validation; if there would be fewer, the held-out ones are used."""
_ROWS = 24
"""Rows for validation, if they are questions with answers or pairs, which are shorter than documents."""
_VALIDATION_CHARACTERS = 32 * WINDOW_CHARACTERS
"""Characters of the validation text that are scored. Even twelve windows determine the change of a loss to 0.2 %,
because the same windows are compared."""
_FEWEST_PROMPTS, _MOST_PROMPTS = 8, 48
"""Prompts in a part that the settings leave open: a tenth of all, but at least and at most so many, and at most a fifth
of them."""
_SHOWN_GROUPS = 5
_NAMED = 100  # held-out records


@dataclass(frozen=True, eq=False)
class Division:
    """The data of a run, tokenised and divided."""

    store: TokenStore
    """The tokens: one record a row, or two of a pair."""
    train: Integers
    """The rows that are trained on; of single answers, the good ones."""
    parts: Mapping[Kind, Part]
    """The rows that are scored; of single answers, the good ones."""
    scored: ScoredTexts
    """Their texts."""
    windows: list[Window]
    """The held-out text."""
    validation_windows: list[Window]
    """The validation text, whose loss decides which step is kept; empty if there is none."""
    retention_windows: list[Window]
    """The text of `retention_data`."""
    summary: SplitSummary
    """Counts and fingerprints of the rows, for the run's record."""
    notes: list[str]
    """Notes on what is unusual about the data, one sentence each."""
    answers: Mapping[str, tuple[Preferences, Integers]] = field(default_factory=dict)
    """Of preference tuning: training, held_out or validation -> its answers, and those of their rows that belong to it.
    Validation pairs choose the step that is kept."""
    general: GeneralQuestions | None = None
    """The general questions that the base answers; None: it cannot answer, or no conversations are learned."""


def read_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> Division:
    """Read, tokenise and divide the data of a run: texts, with other text mixed into them, or answers."""
    if config.reward:
        raise TsugikiError(
            "reward is for `tsugiki train` alone, which samples what it learns; `tsugiki pairs` shows it"
        )
    return (_divide_texts if config.preference is None else _divide_answers)(config, tokenizer, progress)


def _divide_texts(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> Division:
    """Divide texts, mix other text into them, and choose general questions."""
    wanted, key = parse_held_out(config.held_out), content_key(config.data, config.columns)
    digest = data_digest(config, tokenizer, key)
    corpus, store, is_one = read_texts(config, key, tokenizer, progress, share_of(wanted))
    index, rows = corpus.index, np.arange(len(corpus.index))
    if config.drop_duplicates:
        rows = np.setdiff1d(rows, shorter_duplicates(index, duplicates(index, corpus.near)))
    if wanted is None:
        held_out = Part(corpus, rows[:0])
    elif isinstance(wanted, Path):
        held_out = read_file(config, wanted)
    elif is_one:
        held_out = Part(corpus, rows[1:])
    else:
        held_out = Part(corpus, np.intersect1d(split_records(index, wanted, config.seed, corpus.near), rows))
    if held_out.corpus is corpus:
        rows = np.setdiff1d(rows, held_out.rows)
    kinds: set[type[Record]] = {Document} if is_one else record_kinds(config.data, config.columns)
    division = _divided(config, tokenizer, Part(corpus, rows), store, kinds, digest, held_out, is_one)
    if config.mix not in (AUTO, NONE):
        division = _with_mixed_text(config, division, tokenizer, progress)
    if not division.summary.learns_conversations:
        return division
    general = general_questions(config, tokenizer, division.store, division.train)
    more = [general.note] if general and general.learned else []
    return replace(division, general=general, notes=[*division.notes, *more])


def _divide_answers(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> Division:
    """Divide the answers of preference tuning.

    The chosen (or good) answers are divided like any other rows, so the windows and the rows that are left out are
    those of a run that trains on these answers alone. Each rejected answer is in the row of its chosen one.
    """
    _refuse_validation_file(config)
    answers = read_answers_of(config, config.data, tokenizer, progress)
    with progress.stage(_("looking for near-duplicates"), None):
        groups = answers.groups()
    corpus = _corpus_of(config, config.data, answers, groups)
    wanted, rows = parse_held_out(config.held_out), answers.usable
    other, scored, held = answers, corpus, rows[:0]
    if isinstance(wanted, Path):
        other = read_answers_of(config, wanted, tokenizer, progress)
        held = other.usable
        scored = _corpus_of(config, wanted, other, other.groups())
    elif wanted is not None:
        if len(rows) == 1:
            raise TsugikiError(
                "{source} has the only answers, so none can be held out; add rows, or give a held-out file",
                source=answers.index.sources[int(rows[0])].rpartition(" (")[0],
            )
        held = np.intersect1d(split_records(answers.index, wanted, config.seed, groups), rows)
        rows = np.setdiff1d(rows, held)
    held_out = Part(scored, held[other.is_good(held)])
    kinds = {type(next(read_answers(config.data, config.columns)))}
    digest = data_digest(config, tokenizer, content_key(config.data, config.columns))
    train = Part(corpus, rows[answers.is_good(rows)])
    division = _divided(config, tokenizer, train, answers.store, kinds, digest, held_out)
    more = [note for note in answers.notes() if note not in division.notes]
    parts = _answers(answers, division, rows, kept_together(answers.index, groups), (other, held))
    return replace(division, notes=[*division.notes, *more], answers=parts)


def _refuse_validation_file(config: RunConfig) -> None:
    if config.validation != AUTO and isinstance(parse_held_out(config.validation, "validation"), Path):
        raise TsugikiError(
            "validation {path}: validation pairs are a share or a part of the data, not another file; add these rows "
            "to the data with a column such as part, and set validation to part=validation",
            path=error_text(config.validation, 100),
        )


def _corpus_of(config: RunConfig, data: Data, answers: Preferences, groups: list[list[int]]) -> Corpus:
    """Return the chosen (or good) answers, whose text is scored; `groups` are near-duplicates among all answers."""
    good = answers.is_good(np.arange(len(answers.index)))
    characters = answers.store.index.characters[:: answers.size]
    near = [one for group in groups if len(one := [row for row in group if good[row]]) > 1]

    def read() -> Iterable[Record]:
        return islice(read_answers(data, config.columns), 0, None, answers.size)

    return Corpus(replace(answers.index, characters=characters), read, near)


def _divided(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Part,
    store: TokenStore,
    kinds: set[type[Record]],
    digest: str,
    held_out: Part,
    is_one: bool = False,
) -> Division:
    """Choose the validation text among the rows `train`, leave out rows that repeat scored text, and count all rows.

    `kinds` are the classes of the records, and `digest` is the `data_digest`. `is_one`: the rows are the beginning and
    the end of one document, of which nothing is left out, because nothing else is left to train on.
    """
    corpus, parts = train.corpus, dict[Kind, Part]({"held-out": held_out})
    index = corpus.index
    if validation := _validation(config, train):
        parts["validation"] = validation
    if retention := retention_source(config):
        parts["retention"] = read_file(config, retention)
    limit = config.most_held_out_characters
    windows, scored = read_scored(parts, {"held-out": limit, "validation": _VALIDATION_CHARACTERS, "retention": limit})
    repeated = repeated_text(train, parts, scored)
    of_validation: Repeated = {}
    if validation:
        of_validation = _repeats_of_validation(validation, corpus, parts, repeated, scored)
        parts["validation"] = validation._replace(left_out=np.array([*of_validation], np.int64))
        windows["validation"] = _kept_windows(config, parts["validation"], windows["validation"], of_validation)
        if validation.corpus is corpus:
            train = train._replace(rows=np.setdiff1d(train.rows, validation.rows))
    repeated = {row: repeated[row] for row in np.intersect1d(train.rows, [*repeated]).tolist()}
    if not config.allow_overlap and not is_one:
        train = _leave_out(train, notes.repeating(repeated, "held-out", "validation"))
    held, chosen = windows["held-out"], windows.get("validation", [])
    halved = not chosen and config.validation == AUTO and len(held) > 1
    if halved:  # few documents
        held, chosen = held[1::2], held[::2]
    choosing = parts["held-out" if halved else "validation"] if chosen else None
    summary = SplitSummary(
        digest=digest,
        train=RecordCounts(**_counts(index, train.kept)),
        held_out=_held_out_counts(train, held_out, held, is_one),
        validation=choosing and ValidationCounts(**_counts(choosing.corpus.index, choosing.kept), from_held_out=halved),
        learns_answers=kinds != {Document},
        learns_conversations=Conversation in kinds or (Completion in kinds and bool(tokenizer.chat_template)),
        near_duplicates=_near_duplicates(corpus),
        left_out=LeftOutCounts(
            **_counts(index, train.left_out), first=[index.name(row) for row in train.left_out[:_SHOWN_GROUPS]]
        ),
    )
    said = [
        *store.reading.notes(),
        *notes.template_notes(kinds, tokenizer),
        *map(Detail, notes.document_notes(config, is_one)),
        *notes.repeat_notes(train, validation, repeated, of_validation),
        *notes.window_notes(config, summary, len(held)),
        *notes.question_notes(train, [*parts.values()], held_out),
        *notes.near_notes(config, corpus, summary.learns_answers or config.preference is not None, held_out),
        *notes.known_notes(summary),
    ]
    retention_windows = windows.get("retention", [])
    return Division(store, train.kept, parts, scored, held, chosen, retention_windows, summary, said)


def _leave_out(train: Part, repeated: Repeated) -> Part:
    """Return the training rows of which these are left out, because they repeat held-out or validation text."""
    if repeated and len(repeated) == len(train.rows):
        message = _(
            "no record is left for training: all of them repeat held-out or validation text: {names}; give "
            "another held-out text, or {flag:allow_overlap}"
        )
        names = notes.named_repeats(train.corpus, repeated, "held-out", "validation")
        raise TsugikiError(message.format(names=names))
    return train._replace(left_out=np.array([*repeated], np.int64))


def _repeats_of_validation(
    validation: Part, corpus: Corpus, parts: Mapping[Kind, Part], repeated: Repeated, scored: ScoredTexts
) -> Repeated:
    """Return the validation rows that repeat held-out text; `repeated` has those of the corpus `corpus`."""
    if validation.corpus is not corpus:
        repeated = repeated_text(validation, {"held-out": parts["held-out"]}, scored)
    inside = np.intersect1d(validation.rows, [*repeated]).tolist()
    return notes.repeating({row: repeated[row] for row in inside}, "held-out")


def _kept_windows(config: RunConfig, validation: Part, windows: list[Window], repeated: Repeated) -> list[Window]:
    """Return the windows of validation rows that do not repeat held-out text; of the user's rows, one must be left."""
    kept = [window for window in windows if validation.rows[window.document] not in repeated]
    if repeated and not kept and config.validation != AUTO:
        raise TsugikiError(
            "no record is left for validation: all of them repeat held-out text: {names}; give another text",
            names=notes.named_repeats(validation.corpus, repeated, "held-out"),
        )
    return kept


def _held_out_counts(train: Part, held_out: Part, windows: list[Window], is_one: bool) -> HeldOutCounts:
    """Return the counts of held-out rows.

    The fact of a held-out row is known if a row that is trained on has the same answer, and few training rows have it.

    Args:
        train: the training rows.
        held_out: the held-out rows.
        windows: the parts of the held-out rows that are scored.
        is_one: the held-out rows are the end of the only training text.
    """
    index, answers = held_out.corpus.index, train.corpus.index.answers
    with_rare_answer = np.flatnonzero(rare(answers))
    trained = answers[np.intersect1d(train.kept, with_rare_answer)]
    return HeldOutCounts(
        **_counts(index, held_out.rows),
        measured_characters=sum(len(window.record.text) for window in windows),
        known_facts=int(np.isin(index.answers[held_out.rows], trained).sum()),
        same_text=is_one,
        names=[index.name(row) for row in held_out.rows[:_NAMED]],
    )


def _near_duplicates(corpus: Corpus) -> NearDuplicates:
    """Return the number of near-duplicates, and the names of the first ones."""
    alike = duplicates(corpus.index, corpus.near)
    first = [[corpus.index.name(row) for row in group] for group in alike[:_SHOWN_GROUPS]]
    return NearDuplicates(groups=len(alike), records=sum(map(len, alike)), first=first)


def _with_mixed_text(
    config: RunConfig, division: Division, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay
) -> Division:
    """Add the records of `mix` to the training records, without near-duplicates of held-out ones."""
    path, share = parse_mix(config.mix)
    other = read_store(config, path, content_key(path, config.columns), tokenizer, progress)
    part = Part(Corpus(other.index, partial(read_records, path, config.columns), []), np.arange(len(other.index)))
    repeated = repeated_text(part, division.parts, division.scored)
    allowed = np.setdiff1d(part.rows, [*notes.repeating(repeated, "held-out", "validation")])
    if not len(allowed):
        raise TsugikiError(
            "mix: all records of {path} are held-out text or nearly the same; give another text", path=path
        )
    mixed = mix(division.store, division.train, other, allowed, share, config.seed, tokenizer)
    taken = part._replace(rows=np.sort(mixed.taken))
    said = [*division.notes, *notes.mix_notes(mixed, path), *notes.retention_notes(taken, repeated)]
    return with_mixed(replace(division, notes=said), mixed)


def with_mixed(division: Division, mixed: Mixed, answers: Mapping[str, str] = {}) -> Division:
    """Return the data with other records among those of training; `answers` are those to general questions."""
    index, added = mixed.store.index, mixed.train[len(division.train) :]
    counted = MixedCounts(
        **_counts(index, added), tokens=mixed.tokens, share=mixed.share, general_answers=dict(answers)
    )
    train = RecordCounts(**_counts(index, mixed.train))
    summary = division.summary.model_copy(update={"train": train, "mixed": counted})
    return replace(division, store=mixed.store, train=mixed.train, summary=summary)


def _validation(config: RunConfig, train: Part) -> Part | None:
    """Return the rows whose loss decides which step is kept; None if no rows are set aside for this."""
    corpus, setting = train.corpus, config.validation
    index = corpus.index
    if setting == AUTO and _works(corpus, train.rows) < 2 * _FEWEST_DOCUMENTS:
        return None
    several = VALIDATION if index.splittable[train.rows].any() else replace(VALIDATION, documents=_ROWS)
    wanted = several if setting == AUTO else parse_held_out(setting, "validation")
    if wanted is None:
        return None
    if isinstance(wanted, Path):
        return read_file(config, wanted)
    rows = split_validation(index, train.rows, wanted, config.seed, corpus.near)
    return None if setting == AUTO and _works(corpus, rows) < _FEWEST_DOCUMENTS else Part(corpus, rows)


def _works(corpus: Corpus, rows: Integers) -> int:
    """Return the number of rows, where those that are kept together count as one."""
    belongs = np.arange(len(corpus.index))
    for group in kept_together(corpus.index, corpus.near):
        belongs[group] = group[0]
    return len(np.unique(belongs[rows]))


def _answers(
    preferences: Preferences,
    division: Division,
    usable: Integers,
    groups: list[list[int]],
    held_out: tuple[Preferences, Integers],
) -> dict[str, tuple[Preferences, Integers]]:
    """Return the answers that belong to the rows of a division, by the name of their part.

    `usable` are the rows that are not held out, and `held_out` those that are. Of single answers, as many bad ones as
    good ones are scored, and only the likelihood of good ones chooses the step.
    """
    (other, held), parts = held_out, division.parts
    scored, train = _rows_of(parts["held-out"], division.windows), division.train
    if preferences.size == 1:
        used = {*train.tolist()}
        gone = [group for group in groups if any(preferences.good[row] and row not in used for row in group)]
        bad = np.setdiff1d(usable[~preferences.good[usable]], [row for group in gone for row in group])
        held_bad = evenly_spread(held[~other.good[held]].tolist(), len(scored))
        scored = np.sort([*scored.tolist(), *held_bad]).astype(np.int64)
        return {"training": (preferences, np.union1d(train, bad)), "held_out": (other, scored)}
    found = {"training": (preferences, train), "held_out": (other, scored)}
    windows, validation = division.validation_windows, division.summary.validation
    if validation is not None and validation.from_held_out:
        chosen = _rows_of(parts["held-out"], windows)
        others = np.setdiff1d(scored, chosen)  # one answer may have windows in both
        found |= {"held_out": (other, others if len(others) else scored), "validation": (other, chosen)}
    elif validation is not None:
        found["validation"] = preferences, _rows_of(parts["validation"], windows)
    return found


def _rows_of(part: Part, windows: list[Window]) -> Integers:
    """Return the sorted rows that some windows of a part are from."""
    return np.unique(part.rows[[window.document for window in windows]])


def _counts(index: RecordIndex, rows: Integers) -> dict[str, Any]:
    return {
        "documents": len(rows),
        "characters": int(index.characters[rows].sum()),
        "fingerprint": index.fingerprint(rows),
    }


# Prompts of a run with a reward, which have no answers ---------------------------------------------------------


def split_prompts(config: RunConfig) -> dict[str, list[PromptRow]]:
    """Read the prompts of a run, and return those of its parts `training`, `validation` and `held_out`.

    Prompts that are the same are in the same part. The rewards of validation prompts choose the round that is kept;
    those of held-out prompts are reported, and choose nothing. The settings `held_out` and `validation` are those of
    any run: a share, a condition on a field, a file or none.
    """
    rows, parts = read_prompts(config.data, config.columns), dict[str, list[PromptRow]]()
    left = np.random.default_rng(config.seed).permutation(len(rows))
    for setting in ("held_out", "validation"):
        wanted = parse_held_out(getattr(config, setting), setting)
        if isinstance(wanted, Path):
            parts[setting] = read_prompts(str(wanted), config.columns)
        else:
            parts[setting] = [rows[row] for row in _some_prompts(rows, left, wanted)]
        theirs = {one.compared for one in parts[setting]}
        left = np.array([row for row in left if rows[row].compared not in theirs], np.int64)
    if not len(left):
        raise TsugikiError("no prompts are left to learn from; add prompts, or hold fewer out")
    return {"training": [rows[row] for row in np.sort(left)], **parts}


def _some_prompts(rows: Sequence[PromptRow], left: Integers, wanted: Wanted | None) -> Integers:
    """Return the rows that are wanted among those that are left, in their random order."""
    if isinstance(wanted, FieldCondition):
        return left[np.isin(left, wanted.rows(row.fields for row in rows))]
    count = len(rows)
    some = min(max(count // 10, _FEWEST_PROMPTS), count // 5, _MOST_PROMPTS)
    amount = 0 if wanted is None else max(round(wanted * count), 1) if isinstance(wanted, float) else some
    chosen = {rows[row].compared for row in left[:amount]}
    return left[[rows[row].compared in chosen for row in left]]
