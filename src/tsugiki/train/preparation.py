"""Read and split the data of a run, and compute the counts for its record."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsugiki.base.resolve import EMBEDDED, local_folder
from tsugiki.data.blocks import Integers
from tsugiki.data.columns import NO_COLUMNS, Columns
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.learned import find_learned, read_fingerprints
from tsugiki.data.mixing import mix, parse_mix
from tsugiki.data.reading import Reading
from tsugiki.data.records import Conversation, Document, Record
from tsugiki.data.sources import Data, content_key, read_records, record_kinds
from tsugiki.data.splits import (
    FieldCondition,
    find_overlap,
    parse_held_out,
    shorter_duplicates,
    split_document,
    split_records,
    split_validation,
)
from tsugiki.data.store import RecordIndex, TokenStore, open_store, read_index, store_key
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _, counts
from tsugiki.train.config import AUTO, NO_VALIDATION, RunConfig
from tsugiki.train.evaluation.evaluate import WINDOW_CHARACTERS, Window, read_windows, split_windows
from tsugiki.train.record import (
    HeldOutCounts,
    MixedCounts,
    NearDuplicates,
    RecordCounts,
    SplitSummary,
    ValidationCounts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_FOR_VALIDATION = 20
"""With fewer documents, one document is too large a share of the text to be left out of training."""
_VALIDATION_SHARE = 0.05
_VALIDATION_CHARACTERS = 32 * WINDOW_CHARACTERS
"""Characters of the validation text that are scored. Even twelve windows determine the change of a loss to 0.2 %,
because the same windows are compared."""
_SHOWN_GROUPS = 5


@dataclass(frozen=True)
class DatasetSplit:
    """The data of a run, tokenised and split into training and held-out records."""

    store: TokenStore
    """The tokens of all records in `data`."""
    train: Integers
    """Indices of the training records in `store`."""
    not_learned: list["HeldOut"]
    """The held-out records and the validation records."""
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


def read_data(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the data of a run, and mix other text into them.

    Raises:
        TsugikiError: the data cannot be read, or cannot be split as the config says.
    """
    split = _read_data(config, tokenizer, progress)
    return split if config.mix is None else _with_mixed_text(config, config.mix, split, tokenizer, progress)


def _read_data(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", progress: ProgressDisplay) -> DatasetSplit:
    held_out, key = parse_held_out(config.held_out), content_key(config.data, config.columns)
    digest = _data_digest(config, tokenizer, key)
    reading = Reading()
    single = single_document(config.data, config.columns, reading) if isinstance(held_out, float) else None
    if single is not None and isinstance(held_out, float):
        return _split_document(config, single, held_out, tokenizer, key, digest, progress, reading)
    store = _tokenise(config, None, key, tokenizer, progress)
    with progress.stage(_("looking for near-duplicates"), None):
        groups = near_duplicates(store.index.signatures)
    dropped = shorter_duplicates(store.index, groups) if config.drop_duplicates else np.array([], np.int64)
    used = np.setdiff1d(np.arange(len(store.index)), dropped)
    if isinstance(held_out, float | FieldCondition):
        chosen = np.intersect1d(split_records(store.index, held_out, config.seed, groups), used)
        held_out_records = _held_out_of(config, store, chosen, groups, config.held_out_characters)
        return _dataset_split(config, store, np.setdiff1d(used, chosen), held_out_records, groups, [], digest)
    in_file = list(read_records(held_out, config.columns))
    index = read_index(in_file)
    notes = _overlap(store.index, index)
    in_groups = near_duplicates(index.signatures)
    windows = split_windows(in_file, index.characters.tolist(), config.held_out_characters, in_groups)
    held_out_records = HeldOut(index, np.arange(len(index)), windows)
    return _dataset_split(config, store, used, held_out_records, groups, notes, digest)


def _held_out_of(
    config: RunConfig, store: TokenStore, numbers: Integers, groups: list[list[int]], limit: int
) -> "HeldOut":
    """Read the text of some records of the data.

    Args:
        config: the settings.
        store: the tokens of all records.
        numbers: the records, sorted.
        groups: groups of near-duplicates, as numbers in `store`.
        limit: approximate number of characters to read.
    """
    place = {number: place for place, number in enumerate(numbers.tolist())}
    records = (record for number, record in enumerate(read_records(config.data, config.columns)) if number in place)
    inside = [[place[number] for number in group if number in place] for group in groups]
    return HeldOut(
        store.index, numbers, split_windows(records, store.index.characters[numbers].tolist(), limit, inside)
    )


def data_digest(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a digest of the files of the data, the held-out text and the retention data, and of the tokenizer.

    Raises:
        TsugikiError: a file cannot be read.
    """
    return _data_digest(config, tokenizer, content_key(config.data, config.columns))


def _data_digest(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", key: str) -> str:
    held_out = parse_held_out(config.held_out)
    digests = {"data": store_key(key, tokenizer, config.assistant_turns)}
    if isinstance(held_out, Path):
        digests["held_out"] = content_key(held_out, config.columns)
    if config.validation not in (AUTO, NO_VALIDATION):
        validation = parse_held_out(config.validation, "validation")
        if isinstance(validation, Path):
            digests["validation"] = content_key(validation, config.columns)
    if config.mix is not None:
        digests["mix"] = content_key(parse_mix(config.mix)[0], config.columns)
    if config.retention_data is not None:
        digests["retention_data"] = content_key(_retention_source(config.retention_data), config.columns)
    return combined_digest(digests)


def single_document(data: Data, columns: Columns = NO_COLUMNS, reading: Reading | None = None) -> Document | None:
    """Return the document if the data consist of one document only, otherwise None; arguments: see `read_records`."""
    first = list(islice(read_records(data, columns, reading), 2))
    return first[0] if len(first) == 1 and isinstance(first[0], Document) else None


def _split_document(
    config: RunConfig,
    document: Document,
    held_out: float,
    tokenizer: "PreTrainedTokenizerBase",
    key: str,
    digest: str,
    progress: ProgressDisplay,
    reading: Reading,
) -> DatasetSplit:
    """Hold out the end of the only document. `key` is from `content_key`; `reading` has the notes on its file."""
    records = split_document(document, held_out)
    store = _tokenise(config, records, f"{key}\0{held_out}", tokenizer, progress, reading)
    train, held_out_indices = np.array([0]), np.array([1])
    windows = split_windows(records[1:], store.index.characters[held_out_indices].tolist(), config.held_out_characters)
    notes = [_("one document: its last {held_out:.0%} is held out").format(held_out=held_out)]
    return _dataset_split(config, store, train, HeldOut(store.index, held_out_indices, windows), [], notes, digest)


def _tokenise(
    config: RunConfig,
    records: Iterable[Record] | None,
    key: str,
    tokenizer: "PreTrainedTokenizerBase",
    progress: ProgressDisplay,
    reading: Reading | None = None,
) -> TokenStore:
    """Return the tokens of `records` (None: of `config.data`), from the cache if it has them under `key`."""
    reading = Reading() if reading is None else reading
    with progress.stage(_("tokenising"), None) as advance:
        return open_store(
            read_records(config.data, config.columns, reading) if records is None else records,
            key,
            tokenizer,
            config.assistant_turns,
            cache_folder("tokens"),
            advance,
            reading,
        )


@dataclass(frozen=True)
class HeldOut:
    """Records that are not trained on."""

    index: RecordIndex
    """The index that contains the records."""
    numbers: Integers
    """Numbers of the records in the index."""
    windows: list[Window]
    """The text of the records."""


def _dataset_split(
    config: RunConfig,
    store: TokenStore,
    train: Integers,
    held_out: HeldOut,
    groups: list[list[int]],
    notes: list[str],
    digest: str,
) -> DatasetSplit:
    """Choose the validation text, count the records and read the retention data.

    Args:
        config: the settings.
        store: the tokens of all records in `config.data`.
        train: numbers of the records in `store` that are not held out.
        held_out: the held-out records.
        groups: groups of near-duplicates, as numbers in `store`.
        notes: the notes on the data so far.
        digest: from `_data_digest`.
    """
    validation = _validation(config, store, train, groups)
    validation_counts: ValidationCounts | None = None
    windows = held_out.windows
    if validation is None and config.validation == AUTO:  # few documents: windows of the held-out text choose
        validation = HeldOut(held_out.index, held_out.numbers, windows[::2] if len(windows) > 1 else [])
        windows = windows[1::2] or windows
        if validation.windows:
            validation_counts = ValidationCounts(**_counts(held_out.index, held_out.numbers), from_held_out=True)
            notes.append(_("few documents: every second window of the held-out text chooses the step that is kept"))
        else:
            notes.append(_("the held-out text is too short to choose a step as well: the last step is kept"))
    elif validation is not None:
        if validation.index is store.index:
            train = np.setdiff1d(train, validation.numbers)
        validation_counts = ValidationCounts(**_counts(validation.index, validation.numbers), from_held_out=False)
    duplicates = sum(map(len, groups))
    if groups and config.drop_duplicates:
        notes.append(
            _(
                "near-duplicates of each other: {records} in {groups}; only the longest one of each group is used"
            ).format(records=counts.records(duplicates), groups=counts.groups(len(groups)))
        )
    elif groups:
        notes.append(
            _(
                "near-duplicates of each other: {records} in {groups}, kept together; "
                "--drop-duplicates uses one of each"
            ).format(records=counts.records(duplicates), groups=counts.groups(len(groups)))
        )
    notes = [*store.reading.notes(), *notes]
    known_to_base = _known_to_base(config, held_out.index, held_out.numbers)
    if known_to_base:
        notes.append(
            _(
                "{known:,} of {all:,} held-out documents, or nearly the same texts, were in the pretraining of "
                "{model}: it is better on them than on new text, and there is less to gain"
            ).format(known=known_to_base, all=len(held_out.numbers), model=config.model)
        )
    first = [[store.index.name(number) for number in group] for group in groups[:_SHOWN_GROUPS]]
    summary = SplitSummary(
        digest=digest,
        train=RecordCounts(**_counts(store.index, train)),
        held_out=HeldOutCounts(
            **_counts(held_out.index, held_out.numbers),
            measured_characters=sum(len(window.record.text) for window in windows),
            known_to_base=known_to_base,
        ),
        validation=validation_counts,
        learns_conversations=Conversation in record_kinds(config.data, config.columns),
        near_duplicates=NearDuplicates(groups=len(groups), records=duplicates, first=first),
    )
    retention_windows = []
    if config.retention_data is not None:
        source = _retention_source(config.retention_data)
        retention_windows = read_windows(source, config.held_out_characters, config.columns)
    validation_windows = [] if validation is None else validation.windows
    not_learned = [held_out, *([] if validation is None else [validation])]
    return DatasetSplit(store, train, not_learned, windows, validation_windows, retention_windows, summary, notes)


def _known_to_base(config: RunConfig, index: RecordIndex, numbers: Integers) -> int:
    """Return how many of the records the base was trained on, by the fingerprints in its folder."""
    folder = local_folder(config.model)
    learned = None if folder is None else read_fingerprints(folder)
    if learned is None:
        return 0
    same, near = find_learned(index, [learned], numbers)
    return len(same | near)


def _retention_source(name: str) -> str:
    """Return the source that the setting `retention_data` names: the text that comes with Tsugiki, or the user's."""
    return str(files("tsugiki") / "assets" / "retention") if name == EMBEDDED else name


def _with_mixed_text(
    config: RunConfig,
    setting: str,
    split: DatasetSplit,
    tokenizer: "PreTrainedTokenizerBase",
    progress: ProgressDisplay,
) -> DatasetSplit:
    """Add the records of `mix` to the training records, without near-duplicates of held-out ones."""
    path, share = parse_mix(setting)
    key = content_key(path, config.columns)
    reading = Reading()
    other = _tokenise(config, read_records(path, config.columns, reading), key, tokenizer, progress, reading)
    allowed = set(range(len(other.index)))
    for held_out in split.not_learned:
        signatures = np.concatenate([other.index.signatures, held_out.index.signatures[held_out.numbers]])
        for group in near_duplicates(signatures):
            if any(number >= len(other.index) for number in group):
                allowed -= set(group)
    if not allowed:
        raise TsugikiError(
            _("mix: all records of {path} are held-out text or nearly the same; give another text").format(path=path)
        )
    mixed = mix(split.store, split.train, other, np.array(sorted(allowed)), share, config.seed)
    added = MixedCounts(**_counts(other.index, mixed.taken), tokens=mixed.tokens, share=mixed.share)
    train = RecordCounts(**_counts(mixed.store.index, mixed.train))
    note = _("{share:.1%} of the training tokens are from {path} ({records})").format(
        share=mixed.share, path=path, records=counts.records(len(mixed.taken))
    )
    notes = [*split.notes, note]
    summary = split.summary.model_copy(update={"train": train, "mixed": added})
    return replace(split, store=mixed.store, train=mixed.train, summary=summary, notes=notes)


def _validation(config: RunConfig, store: TokenStore, train: Integers, groups: list[list[int]]) -> HeldOut | None:
    """Return the records whose loss decides which step is kept; None if no records are set aside for this."""
    setting = config.validation
    if setting == NO_VALIDATION:
        return None
    if setting == AUTO:
        if len(_works(train, groups)) < _DOCUMENTS_FOR_VALIDATION:
            return None
        setting = _VALIDATION_SHARE
    parsed = parse_held_out(setting, "validation")
    if isinstance(parsed, Path):
        records = list(read_records(parsed, config.columns))
        index = read_index(records)
        _overlap(store.index, index, "validation")
        windows = split_windows(records, index.characters.tolist(), _VALIDATION_CHARACTERS)
        return HeldOut(index, np.arange(len(index)), windows)
    numbers = split_validation(store.index, train, parsed, config.seed, groups)
    return _held_out_of(config, store, numbers, groups, _VALIDATION_CHARACTERS)


def _works(records: Integers, groups: list[list[int]]) -> Integers:
    """Return one record of each group of near-duplicates, and all records that belong to no group."""
    given = set(np.intersect1d(records, [number for group in groups for number in group]).tolist())
    repeated = [number for group in groups for number in [one for one in group if one in given][1:]]
    return np.setdiff1d(records, repeated)


def _counts(index: RecordIndex, records: Integers) -> dict[str, Any]:
    return {
        "documents": len(records),
        "characters": int(index.characters[records].sum()),
        "fingerprint": index.fingerprint(records),
    }


def _overlap(train: RecordIndex, held_out: RecordIndex, what: str = "held-out") -> list[str]:
    """Return a note if the held-out file has near-duplicates of training records.

    Raises:
        TsugikiError: the held-out file contains training records.
    """
    same, near = find_overlap(train, held_out)
    if same:
        raise TsugikiError(
            _(
                "{count:,} records of the training data are in the {what} file as well: {same}; remove them from one "
                "of the two, because {what} text must not be trained on"
            ).format(count=len(same), what=_(what), same=summarise_list(same))
        )
    if not near:
        return []
    return [
        _("training records that are nearly the same as held-out ones: {count:,}: {near}").format(
            count=len(near), near=summarise_list(near)
        )
    ]
