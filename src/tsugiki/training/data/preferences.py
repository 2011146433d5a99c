"""Read and split the answers of preference tuning.

The chosen (or good) answers are split like any other records, so the held-out text, the validation text and the texts
that are left out are those of a run that trains on these answers alone. Each rejected answer goes with its chosen one.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.blocks import Integers
from tsugiki.data.overlap import ScoredTexts
from tsugiki.data.read.answers import read_answers
from tsugiki.data.read.files import content_key
from tsugiki.data.splits import kept_together, parse_held_out, split_records
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.cache import cache_folder
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.preference.pairs import Preferences, open_preferences
from tsugiki.training.data.held_out import HeldOut, nothing_held_out, numbered
from tsugiki.training.data.split import DatasetSplit, ReadRecords, SplitAnswers, data_digest, dataset_split
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.tools.spread import evenly_spread


def read_preferences(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the answers in the data of a run."""
    _refuse_validation_file(config)
    cache = cache_folder("tokens")
    with progress.stage(_("tokenising"), None):
        preferences = open_preferences(config.data, tokenizer, cache, config.columns)
    _check_kind(config, preferences)
    store, usable = preferences.store, _records(preferences, preferences.usable)
    with progress.stage(_("looking for near-duplicates"), None):
        groups = preferences.groups()
    wanted, scored, limit = parse_held_out(config.held_out), ScoredTexts(), config.most_held_out_characters
    good_groups = _good_part(preferences, groups)
    other, held = preferences, np.zeros(0, np.int64)
    if wanted is None:
        part = nothing_held_out(store.index)
    elif isinstance(wanted, Path):
        with progress.stage(_("tokenising"), None):
            other = open_preferences(wanted, tokenizer, cache, config.columns)
        _check_kind(config, other)
        held = _records(other, other.usable)
        part = HeldOut("held-out", other.store.index, _good(other, held), limit, _good_part(other, other.groups()))
        for numbers, batch in numbered(read_answers(wanted, config.columns)):
            part.add(numbers, batch, scored)
    else:
        if len(preferences.usable) == 1:
            message = _("{source} has the only answers, so none can be held out; add rows, or give a held-out file")
            source = store.index.sources[int(preferences.usable[0])].rpartition(" (")[0]
            raise TsugikiError(message.format(source=source))
        held = np.intersect1d(split_records(store.index, wanted, config.seed, groups), usable)
        part = HeldOut("held-out", store.index, _good(preferences, held), limit, good_groups)
        usable = np.setdiff1d(usable, held)
    records = ReadRecords(
        store,
        partial(read_answers, config.data, config.columns),
        {type(next(read_answers(config.data, config.columns)))},
        good_groups,
        data_digest(config, tokenizer, content_key(config.data, config.columns)),
    )
    split = dataset_split(config, tokenizer, records, _good(preferences, usable), part, scored, config.allow_overlap)
    more = [note for note in preferences.notes if note not in split.notes]
    answers = _answers(preferences, split, usable, kept_together(store.index, groups), (other, held))
    return replace(split, notes=[*split.notes, *more], answers=answers)


def _refuse_validation_file(config: RunConfig) -> None:
    if config.validation != AUTO and isinstance(parse_held_out(config.validation, "validation"), Path):
        message = _(
            "validation {path}: validation pairs are a share or a part of the data, not another file; add these rows "
            "to the data with a column such as part, and set validation to part=validation"
        )
        raise TsugikiError(message.format(path=error_text(config.validation, 100)))


def _check_kind(config: RunConfig, preferences: Preferences) -> None:
    if preferences.size == 1 and config.preference != "kto":
        message = _(
            "the data have single answers with a label, and the loss {name} needs pairs, which have chosen and "
            "rejected; {flag:preference kto} takes single answers"
        )
        raise TsugikiError(message.format(name=config.preference))


def _records(preferences: Preferences, firsts: Integers) -> Integers:
    """Return the sorted records of pairs or single answers, whose first records are given."""
    return np.sort((firsts[:, None] + np.arange(preferences.size)).ravel())


def _good(preferences: Preferences, records: Integers) -> Integers:
    return records[preferences.good[records]]


def _good_part(preferences: Preferences, groups: list[list[int]]) -> list[list[int]]:
    """Return groups of near-duplicates without the rejected answers."""
    parts = [[number for number in group if preferences.good[number]] for group in groups]
    return [part for part in parts if len(part) > 1]


def _answers(
    preferences: Preferences,
    split: DatasetSplit,
    usable: Integers,
    groups: list[list[int]],
    held_out: tuple[Preferences, Integers],
) -> SplitAnswers:
    """Return the answers that belong to the records of a split.

    `usable` are the records that are not held out, and `held_out` those that are. Of single answers, as many bad ones
    as good ones are scored, and only the likelihood of good ones chooses the step.
    """
    (other, held), parts = held_out, split.parts
    scored = parts.held_out.numbers_of(split.windows)
    if preferences.size == 1:
        used = set(split.train.tolist())
        gone = [group for group in groups if any(preferences.good[one] and one not in used for one in group)]
        bad = np.setdiff1d(usable[~preferences.good[usable]], [number for group in gone for number in group])
        held_bad = evenly_spread(held[~other.good[held]].tolist(), len(scored))
        training = preferences, np.sort(np.concatenate([split.train, bad])).astype(np.int64)
        return SplitAnswers(training, (other, np.sort([*scored.tolist(), *held_bad]).astype(np.int64)), None)
    chosen_by = parts.validation or parts.held_out
    validation = chosen_by.numbers_of(split.validation_windows) if split.validation_windows else None
    if validation is None:
        return SplitAnswers((preferences, split.train), (other, scored), None)
    if chosen_by is parts.validation:
        return SplitAnswers((preferences, split.train), (other, scored), (preferences, validation))
    others = np.setdiff1d(scored, validation)  # one answer may have windows in both
    return SplitAnswers((preferences, split.train), (other, others if len(others) else scored), (other, validation))
