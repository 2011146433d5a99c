"""Read and split the data of a run, and compute the counts for its record."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.base.resolve import EMBEDDED
from tsugiki.data.blocks import Integers
from tsugiki.data.chat import DEFAULT_TEMPLATE
from tsugiki.data.overlap import Kind, ScoredTexts
from tsugiki.data.read.files import Data, content_key, read_records, record_kinds
from tsugiki.data.read.schemas import NO_COLUMNS, Columns
from tsugiki.data.records import NONE, Completion, Conversation, Document, Reading, Record
from tsugiki.data.splits import (
    VALIDATION,
    duplicates,
    kept_together,
    near_duplicate_records,
    parse_held_out,
    rare,
    share_of,
    shorter_duplicates,
    split_document,
    split_records,
    split_validation,
)
from tsugiki.data.store import RecordIndex, TokenStore, open_store, store_key
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _, counts
from tsugiki.preference.pairs import Preferences
from tsugiki.training.data.general import GeneralQuestions, general_questions
from tsugiki.training.data.held_out import HeldOut, Repeated, nothing_held_out, numbered, read_held_out, repeated_text
from tsugiki.training.data.windows import WINDOW_CHARACTERS, Window
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

if TYPE_CHECKING:
    from tsugiki.data.mixing import Mixed

_FEWEST_DOCUMENTS = 5
"""Documents that are left out of training for validation; if there would be fewer, the held-out ones are used."""
_ROWS = 24
"""Rows of questions and answers, or pairs, for validation: they are shorter than documents."""
_VALIDATION_CHARACTERS = 32 * WINDOW_CHARACTERS
"""Characters of the validation text that are scored. Even twelve windows determine the change of a loss to 0.2 %,
because the same windows are compared."""
_SHOWN_GROUPS = 5
_NAMED = 100  # held-out records


@dataclass(frozen=True)
class ReadRecords:
    """The records of the data, whose tokens are in `store`."""

    store: TokenStore
    read: Callable[[], Iterable[Record]]
    """Reads the records again."""
    kinds: set[type[Record]]
    """Their classes."""
    groups: list[list[int]]
    """Near-duplicates, which stay together, as numbers in `store`."""
    digest: str
    """That of all texts of the run (`data_digest`)."""
    notes: Sequence[str] = ()
    is_one: bool = False
    """Whether they are the beginning and the end of one document."""


@dataclass(frozen=True)
class ScoredParts:
    """The records that are scored, and their texts."""

    held_out: HeldOut
    validation: HeldOut | None
    """None: no records are set aside for it."""
    retention: HeldOut | None
    texts: ScoredTexts

    @property
    def all(self) -> list[HeldOut]:
        """The parts that there are."""
        return [part for part in (self.held_out, self.validation, self.retention) if part is not None]


@dataclass(frozen=True)
class SplitAnswers:
    """Answers of preference tuning, each with the numbers of the first records of its pairs (or of single answers)."""

    training: tuple[Preferences, Integers]
    held_out: tuple[Preferences, Integers]
    validation: tuple[Preferences, Integers] | None
    """Pairs that choose the step that is kept; None: there are none."""


@dataclass(frozen=True)
class DatasetSplit:
    """The data of a run, tokenised and split into training and held-out records."""

    store: TokenStore
    """The tokens of all records in `data`."""
    train: Integers
    """Indices of the training records in `store`."""
    parts: ScoredParts
    windows: list[Window]
    """The held-out text."""
    validation_windows: list[Window]
    """The validation text, whose loss decides which step is kept; empty if there is none."""
    retention_windows: list[Window]
    """The text of `retention_data`."""
    summary: SplitSummary
    """Counts and fingerprints of the records, for the run's record."""
    notes: list[str]
    """Notes on what is unusual about the data, one sentence each."""
    answers: SplitAnswers | None = None
    """The answers of preference tuning, of which the records above are the chosen (or good) ones."""
    general: GeneralQuestions | None = None
    """The general questions that the base answers; None: it cannot answer, or no conversations are learned."""


def split_texts(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the texts of a run, mix other text into them, and choose general questions."""
    split = _split_data(config, tokenizer, progress)
    if config.mix not in (AUTO, NONE):
        split = _with_mixed_text(config, split, tokenizer, progress)
    if not split.summary.learns_conversations:
        return split
    general = general_questions(config, tokenizer, split.store, split.train)
    notes = [general.note] if general and general.learned else []
    return replace(split, general=general, notes=[*split.notes, *notes])


def _split_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> DatasetSplit:
    held_out, key = parse_held_out(config.held_out), content_key(config.data, config.columns)
    digest, share = data_digest(config, tokenizer, key), share_of(held_out)
    if share is not None:
        reading = Reading()
        document = single_document(config.data, config.columns, reading)
        if document is not None:
            parts = split_document(document, share)
            store = _tokenise(config, parts, f"{key}\0{share}", tokenizer, progress, reading)
            return _split_of_one(config, tokenizer, parts, store, share, digest)
    reading = Reading()
    store = _tokenise(config, read_records(config.data, config.columns, reading), key, tokenizer, progress, reading)
    with progress.stage(_("looking for near-duplicates"), None):
        groups = near_duplicate_records(store.index)
    dropped = (
        shorter_duplicates(store.index, duplicates(store.index, groups))
        if config.drop_duplicates
        else np.array([], np.int64)
    )
    used = np.setdiff1d(np.arange(len(store.index)), dropped)
    scored, limit = ScoredTexts(), config.most_held_out_characters
    if held_out is None:
        part = nothing_held_out(store.index)
    elif isinstance(held_out, Path):
        part = read_held_out("held-out", read_records(held_out, config.columns), limit, scored)
    else:
        chosen = np.intersect1d(split_records(store.index, held_out, config.seed, groups), used)
        part, used = HeldOut("held-out", store.index, chosen, limit, groups), np.setdiff1d(used, chosen)
    read, kinds = partial(read_records, config.data, config.columns), record_kinds(config.data, config.columns)
    records = ReadRecords(store, read, kinds, groups, digest)
    return dataset_split(config, tokenizer, records, used, part, scored, config.allow_overlap)


def _split_of_one(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[Document],
    store: TokenStore,
    share: float,
    digest: str,
) -> DatasetSplit:
    """Return the split of a single document, whose end, a share of it, is held out."""
    note = _("one document: its last {held_out:.0%} is held out").format(held_out=share)
    records = ReadRecords(store, lambda: parts, {Document}, [], digest, [note], is_one=True)
    end = HeldOut("held-out", store.index, np.array([1]), config.most_held_out_characters, [])
    # If the end repeats the beginning, a note says so, because nothing else is left to train on.
    return dataset_split(config, tokenizer, records, np.array([0]), end, ScoredTexts(), allow_overlap=True)


def data_digest(config: RunConfig, tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """Return a digest of all texts that a run reads, and of the tokenizer; `key` is the `content_key` of the data."""
    held_out = parse_held_out(config.held_out)
    digests = {"data": store_key(key, tokenizer, config.assistant_turns)}
    if isinstance(held_out, Path):
        digests["held_out"] = content_key(held_out, config.columns)
    if config.validation not in (AUTO, NONE):
        validation = parse_held_out(config.validation, "validation")
        if isinstance(validation, Path):
            digests["validation"] = content_key(validation, config.columns)
    if config.mix not in (AUTO, NONE):
        from tsugiki.data.mixing import parse_mix

        digests["mix"] = content_key(parse_mix(config.mix)[0], config.columns)
    if config.retention_data is not None:
        digests["retention_data"] = content_key(_retention_source(config.retention_data), config.columns)
    return combined_digest(digests)


def single_document(data: Data, columns: Columns = NO_COLUMNS, reading: Reading | None = None) -> Document | None:
    """Return the document if the data consist of one document only, otherwise None; arguments: see `read_records`."""
    first = list(islice(read_records(data, columns, reading), 2))
    return first[0] if len(first) == 1 and isinstance(first[0], Document) else None


def _tokenise(
    config: RunConfig,
    records: Iterable[Record],
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    progress: ProgressDisplay,
    reading: Reading,
) -> TokenStore:
    """Return the tokens of records, from the cache if it has them under `key`."""
    with progress.stage(_("tokenising"), None) as advance:
        return open_store(records, key, tokenizer, config.assistant_turns, cache_folder("tokens"), advance, reading)


def dataset_split(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    records: ReadRecords,
    train: Integers,
    held_out: HeldOut,
    texts: ScoredTexts,
    allow_overlap: bool,
) -> DatasetSplit:
    """Choose the validation text, leave out records that repeat scored text, and count the records.

    The records with the numbers `train` are not held out. The text of the held-out ones is read if they are in the
    store, and otherwise is in `texts`. `allow_overlap`: train on records that repeat scored text.
    """
    store, notes = records.store, [*records.notes]
    parts = _scored_parts(config, records, train, held_out, texts)
    train, left_out = _without_repeated(config, records, train, parts, allow_overlap, notes)
    windows, validation_windows, validation = _windows(config.validation == AUTO, parts, notes)
    known_facts = _known_facts(store.index, train, held_out)
    notes = [
        *store.reading.notes(),
        *_template_notes(records.kinds, tokenizer),
        *notes,
        *_question_notes(store.index, train, parts),
        *_split_notes(config, records, held_out),
        *_known_notes(len(held_out.numbers), known_facts),
    ]
    alike = duplicates(store.index, records.groups)
    first = [[store.index.name(number) for number in group] for group in alike[:_SHOWN_GROUPS]]
    summary = SplitSummary(
        digest=records.digest,
        train=RecordCounts(**_counts(store.index, train)),
        held_out=HeldOutCounts(
            **_counts(held_out.index, held_out.numbers),
            measured_characters=sum(len(window.record.text) for window in windows),
            known_facts=known_facts,
            same_text=records.is_one,
            names=[held_out.index.name(number) for number in held_out.all_numbers[:_NAMED]],
        ),
        validation=validation,
        learns_answers=records.kinds != {Document},
        learns_conversations=_are_chats(records.kinds, tokenizer),
        near_duplicates=NearDuplicates(groups=len(alike), records=sum(map(len, alike)), first=first),
        left_out=left_out,
    )
    retention_windows = [] if parts.retention is None else parts.retention.windows
    return DatasetSplit(store, train, parts, windows, validation_windows, retention_windows, summary, notes)


def _scored_parts(
    config: RunConfig, records: ReadRecords, train: Integers, held_out: HeldOut, texts: ScoredTexts
) -> ScoredParts:
    """Choose the validation records among those of `train`, and read all text that is scored."""
    index = records.store.index
    validation = _validation(config, index, train, records.groups, texts)
    inside = [part for part in (held_out, validation) if part is not None and part.index is index]
    for numbers, batch in numbered(records.read()) if inside else ():
        for part in inside:
            part.add(numbers, batch, texts)
    retention = None
    if config.retention_data is not None:
        source = read_records(_retention_source(config.retention_data), config.columns)
        retention = read_held_out("retention", source, config.most_held_out_characters, texts)
    return ScoredParts(held_out, validation, retention, texts)


def _without_repeated(
    config: RunConfig,
    records: ReadRecords,
    train: Integers,
    parts: ScoredParts,
    allow_overlap: bool,
    notes: list[str],
) -> tuple[Integers, LeftOutCounts]:
    """Return the training records without those for validation and those that repeat scored text; add notes.

    Validation records that repeat held-out text are left out as well. Also returns the counts of what is left out.
    """
    index, validation = records.store.index, parts.validation
    repeated = repeated_text(records.read(), index, train, parts.all, parts.texts)
    if validation is not None:
        if validation.index is index:
            train = np.setdiff1d(train, validation.numbers)
        _leave_out_of_validation(config, validation, parts.held_out, repeated, parts.texts, notes)
    return _leave_out_repeats(allow_overlap, index, train, repeated, notes)


def _windows(
    automatic: bool, parts: ScoredParts, notes: list[str]
) -> tuple[list[Window], list[Window], ValidationCounts | None]:
    """Return the held-out windows, those for validation and the counts of these; add a note if both are from one text.

    `automatic`: if no validation text is set aside, every second held-out window is one.
    """
    held_out, validation = parts.held_out, parts.validation
    windows = held_out.windows
    if validation is not None and validation.windows:
        counted = ValidationCounts(**_counts(validation.index, validation.numbers), from_held_out=False)
        return windows, validation.windows, counted
    if not automatic or not windows:
        return windows, [], None
    if len(windows) == 1:
        notes.append(_("the held-out text is too short to choose a step as well: the last step is kept"))
        return windows, [], None
    notes.append(_("few documents: every second window of the held-out text chooses the step that is kept"))
    counted = ValidationCounts(**_counts(held_out.index, held_out.numbers), from_held_out=True)
    return windows[1::2], windows[::2], counted


def _question_notes(index: RecordIndex, train: Integers, parts: ScoredParts) -> Iterator[str]:
    """Yield a note if one question has so many records that they are split one by one, not kept together."""
    here = np.concatenate([train, *(part.numbers for part in parts.all if part.index is index)])
    asked = index.questions[here]
    common = int(np.count_nonzero(asked != 0) - np.count_nonzero(rare(index.questions)[here]))
    if common and parts.held_out.index is index:
        message = _(
            "{records} ask a question that more than a tenth of the records ask, such as a greeting: they are split "
            "one by one, so some held-out answers are to questions that are trained on"
        )
        yield message.format(records=counts.records(common))


def _split_notes(config: RunConfig, records: ReadRecords, held_out: HeldOut) -> Iterator[str]:
    """Yield notes if nothing is held out, and on near-duplicates."""
    if parse_held_out(config.held_out) is None:
        yield _("nothing is held out, so nothing is measured on text that the run has not seen")
    groups = records.groups
    note = _(
        "near-duplicates of each other: {records} in {groups}, kept together; {flag:drop_duplicates} uses one of each"
    )
    if config.preference or records.kinds != {Document}:
        note = _("nearly alike: {records} in {groups}, kept together")
        together = {number for group in groups for number in group}
        if held_out.index is records.store.index and 2 * len(together & {*held_out.numbers}) > len(held_out.numbers):
            note = _(
                "nearly alike: {records} in {groups}, kept together, so the held-out text has no question like the "
                "trained ones"
            )
    if config.drop_duplicates:
        groups = duplicates(records.store.index, groups)
        note = _("near-duplicates of each other: {records} in {groups}; only the longest one of each group is used")
    if groups:
        yield note.format(records=counts.records(sum(map(len, groups))), groups=counts.groups(len(groups)))


def _known_notes(held_out: int, known_facts: int) -> Iterator[str]:
    """Yield a note if most held-out questions are phrasings of what is trained on."""
    if 2 * known_facts >= max(held_out, 1):
        message = _(
            "{known:,} of {all:,} held-out questions are other phrasings of what is trained on; the others ask for "
            "what no row answers"
        )
        if known_facts == held_out:
            message = _("the held-out questions are other phrasings of what is trained on")
        yield message.format(known=known_facts, all=held_out)


def _are_chats(kinds: set[type[Record]], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether records of these kinds are trained on as conversations."""
    return Conversation in kinds or (Completion in kinds and bool(tokenizer.chat_template))


def _known_facts(index: RecordIndex, train: Integers, held_out: HeldOut) -> int:
    """Return how many of the held-out questions have an answer that is trained on with another question."""
    trained = index.answers[train[rare(index.answers)[train]]]
    return int(np.isin(held_out.index.answers[held_out.numbers], trained).sum())


def _template_notes(kinds: set[type[Record]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a note on what the tokenizer's chat template, if it has one, means for records of these kinds."""
    if tokenizer.chat_template == DEFAULT_TEMPLATE and kinds != {Document}:
        return [_("questions and answers are turns of a plain chat template; {flag:chat_template} gives another")]
    if not tokenizer.chat_template or Conversation in kinds:
        return []
    if Completion in kinds:
        return [
            _(
                "prompt and completion become turns of the user and the assistant in the chat template of the "
                "tokenizer; {flag:chat_template none} joins them as plain text"
            )
        ]
    message = _(
        "the tokenizer has a chat template, and the data are plain text: if the model is a chat model, it may "
        "answer worse afterwards; its base model learns plain text better"
    )
    return [message]


def _leave_out_of_validation(
    config: RunConfig,
    validation: HeldOut,
    held_out: HeldOut,
    repeated: Repeated,
    scored: ScoredTexts,
    notes: list[str],
) -> None:
    """Leave out validation records that repeat held-out text, and add a note.

    If the user has chosen the records, one of them must be left.
    """
    parsed = parse_held_out(config.validation, "validation") if config.validation != AUTO else None
    if isinstance(parsed, Path):
        records = read_records(parsed, config.columns)
        repeated = repeated_text(records, validation.index, validation.numbers, [held_out], scored)
    inside = np.intersect1d(validation.numbers, list(repeated))
    found = {number: repeated[number] for number in inside.tolist() if "held-out" in repeated[number]}
    if not found:
        return
    names = _named(validation.index, found, "held-out")
    validation.leave_out(found)
    if not validation.windows and config.validation != AUTO:
        message = _("no record is left for validation: all of them repeat held-out text: {names}; give another text")
        raise TsugikiError(message.format(names=names))
    message = _("left out of the validation text, because they repeat held-out text: {records}: {names}")
    notes.append(message.format(records=counts.records(len(found)), names=names))


def _leave_out_repeats(
    allow_overlap: bool, index: RecordIndex, train: Integers, repeated: Repeated, notes: list[str]
) -> tuple[Integers, LeftOutCounts]:
    """Return the training records that do not repeat held-out or validation text, and counts of the others.

    With `allow_overlap`, all are returned. Notes name the records that repeat such text, and those among the returned
    ones that repeat the retention text.

    Raises:
        TsugikiError: no record would be left.
    """
    repeated = {number: repeated[number] for number in np.intersect1d(train, list(repeated)).tolist()}
    found = {number: kinds for number, kinds in repeated.items() if kinds.keys() & {"held-out", "validation"}}
    names = _named(index, found, "held-out", "validation")
    records = counts.records(len(found))
    if found and allow_overlap:
        message = _("trained on, although they repeat held-out or validation text: {records}: {names}")
        notes.append(message.format(records=records, names=names))
        found = {}
    elif found:
        if len(found) == len(train):
            message = _(
                "no record is left for training: all of them repeat held-out or validation text: {names}; give "
                "another held-out text, or {flag:allow_overlap}"
            )
            raise TsugikiError(message.format(names=names))
        message = _(
            "left out of training, because they repeat held-out or validation text: {records}: {names}; "
            "{flag:allow_overlap} trains on them"
        )
        notes.append(message.format(records=records, names=names))
    kept, gone = np.setdiff1d(train, list(found)), np.array(sorted(found), np.int64)
    _note_retention(index, {number: repeated[number] for number in repeated if number not in found}, notes)
    return kept, LeftOutCounts(**_counts(index, gone), first=[index.name(number) for number in gone[:_SHOWN_GROUPS]])


def _note_retention(index: RecordIndex, repeated: Repeated, notes: list[str]) -> None:
    """Add a note if records that are trained on repeat the retention text."""
    found = {number: kinds for number, kinds in repeated.items() if "retention" in kinds}
    if found:
        message = _(
            "{records} that are trained on repeat the retention text, so the run seems to forget less than it "
            "does: {names}"
        )
        notes.append(message.format(records=counts.records(len(found)), names=_named(index, found, "retention")))


def _named(index: RecordIndex, repeated: Repeated, *kinds: Kind) -> str:
    """Return the names of some records and of the scored texts that they repeat, the latter of one of the kinds."""
    labels = {"held-out": _("held out"), "validation": _("validation"), "retention": _("retention")}
    names = []
    for number, found in repeated.items():
        kind = next(kind for kind in kinds if kind in found)
        names.append(f"{index.sources[number]} ({labels[kind]}: {found[kind]})")
    return summarise_list(names)


def _retention_source(name: str) -> str:
    """Return the source that the setting `retention_data` names: the text that comes with Tsugiki, or the user's."""
    return str(files("tsugiki") / "assets" / "retention") if name == EMBEDDED else name


def _with_mixed_text(
    config: RunConfig, split: DatasetSplit, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay
) -> DatasetSplit:
    """Add the records of `mix` to the training records, without near-duplicates of held-out ones."""
    from tsugiki.data.mixing import mix, parse_mix

    path, share = parse_mix(config.mix)
    key = content_key(path, config.columns)
    reading = Reading()
    other = _tokenise(config, read_records(path, config.columns, reading), key, tokenizer, progress, reading)
    everything = np.arange(len(other.index))
    again = read_records(path, config.columns)
    repeated = repeated_text(again, other.index, everything, split.parts.all, split.parts.texts)
    allowed = [
        number for number in everything.tolist() if not repeated.get(number, {}).keys() & {"held-out", "validation"}
    ]
    if not allowed:
        message = _("mix: all records of {path} are held-out text or nearly the same; give another text")
        raise TsugikiError(message.format(path=path))
    mixed = mix(split.store, split.train, other, np.array(allowed), share, config.seed, tokenizer)
    note = _("{share:.1%} of the tokens in the loss are from {path} ({records})").format(
        share=mixed.share, path=path, records=counts.records(len(mixed.taken))
    )
    notes = [*split.notes, note]
    taken = set(mixed.taken.tolist())
    _note_retention(other.index, {number: kinds for number, kinds in repeated.items() if number in taken}, notes)
    return with_mixed(replace(split, notes=notes), mixed)


def with_mixed(split: DatasetSplit, mixed: "Mixed", answers: Mapping[str, str] = {}) -> DatasetSplit:
    """Return the data with other records among those of training; `answers` are those to general questions."""
    index, added = mixed.store.index, mixed.train[len(split.train) :]
    counted = MixedCounts(
        **_counts(index, added), tokens=mixed.tokens, share=mixed.share, general_answers=dict(answers)
    )
    train = RecordCounts(**_counts(index, mixed.train))
    summary = split.summary.model_copy(update={"train": train, "mixed": counted})
    return replace(split, store=mixed.store, train=mixed.train, summary=summary)


def _validation(
    config: RunConfig, index: RecordIndex, train: Integers, groups: list[list[int]], scored: ScoredTexts
) -> HeldOut | None:
    """Return the records whose loss decides which step is kept; None if no records are set aside for this.

    The text of records in the index is still to be read. `groups` are near-duplicates in the index.
    """
    setting = config.validation
    if setting == AUTO and len(_works(train, kept_together(index, groups))) < 2 * _FEWEST_DOCUMENTS:
        return None
    several = VALIDATION if index.splittable[train].any() else replace(VALIDATION, documents=_ROWS)
    parsed = several if setting == AUTO else parse_held_out(setting, "validation")
    if parsed is None:
        return None
    if not isinstance(parsed, Path):
        numbers = split_validation(index, train, parsed, config.seed, groups)
        if config.validation == AUTO and len(_works(numbers, kept_together(index, groups))) < _FEWEST_DOCUMENTS:
            return None
        return HeldOut("validation", index, numbers, _VALIDATION_CHARACTERS, groups)
    return read_held_out("validation", read_records(parsed, config.columns), _VALIDATION_CHARACTERS, scored)


def _works(records: Integers, groups: list[list[int]]) -> Integers:
    """Return one record of each group, and all records that belong to no group."""
    given = set(np.intersect1d(records, [number for group in groups for number in group]).tolist())
    repeated = [number for group in groups for number in [one for one in group if one in given][1:]]
    return np.setdiff1d(records, repeated)


def _counts(index: RecordIndex, records: Integers) -> dict[str, Any]:
    return {
        "documents": len(records),
        "characters": int(index.characters[records].sum()),
        "fingerprint": index.fingerprint(records),
    }
