"""Read, split and pack the data of a run, and count everything that its record shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsugiki.base.context import context_length
from tsugiki.base.inference import seeded
from tsugiki.data.blocks import Blocks, Integers, pack
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.encoding import document_end
from tsugiki.data.records import Document, Record
from tsugiki.data.sources import content_key, read_records
from tsugiki.data.splits import (
    FieldCondition,
    find_overlap,
    parse_held_out,
    split_document,
    split_records,
)
from tsugiki.data.store import RecordIndex, TokenStore, open_store, read_index, store_key
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.document_masks import DocumentMasking, attends_to_later_tokens, detect_document_masking
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest
from tsugiki.io.progress import ProgressDisplay
from tsugiki.lora.graft import graft, ungraft
from tsugiki.methods.prompt_tuning import PromptTuningConfig
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.evaluate import Window, read_windows, split_windows
from tsugiki.train.record import DataSummary, HeldOutCounts, NearDuplicates, RecordCounts, SplitSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK_SIZE = 512
_SHOWN_GROUPS = 5


@dataclass(frozen=True)
class DatasetSplit:
    """The data of a run, tokenised and split into training and held-out records."""

    store: TokenStore
    """The tokens of all records in `data`."""
    train: Integers
    """Indices of the training records in `store`."""
    windows: list[Window]
    """The held-out text."""
    retention_windows: list[Window]
    """The text of `retention_data`."""
    summary: SplitSummary
    """Counts and fingerprints of the records, for the run's record."""
    notes: list[str]
    """What is unusual about the data, one sentence each."""


@dataclass(frozen=True)
class PackedDataset:
    """The data of a run, with the training records packed into rows for a model."""

    blocks: Blocks
    """The training data."""
    windows: list[Window]
    """The held-out text."""
    retention_windows: list[Window]
    """The text of `retention_data`."""
    document_masking: DocumentMasking
    """How documents in the same row are masked from each other."""
    summary: DataSummary
    """Counts and fingerprints of the records and of the rows, for the run's record."""
    notes: list[str]
    """What is unusual about the data, one sentence each."""


def read_data(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the data of a run.

    Raises:
        TsugikiError: the data cannot be read, or cannot be split as the config says.
    """
    held_out, key = parse_held_out(config.held_out), content_key(config.data)
    digest = _data_digest(config, tokenizer, key)
    single = single_document(config.data) if isinstance(held_out, float) else None
    if single is not None and isinstance(held_out, float):
        return _split_document(config, single, held_out, tokenizer, key, digest, progress)
    store = _tokenise(config, None, key, tokenizer, progress)
    with progress.stage("looking for near-duplicates", None):
        groups = near_duplicates(store.index.signatures)
    all_records = np.arange(len(store.index))
    if isinstance(held_out, float | FieldCondition):
        held_out_indices = split_records(store.index, held_out, config.seed, groups)
        numbers = set(held_out_indices.tolist())
        records = (record for number, record in enumerate(read_records(config.data)) if number in numbers)
        characters = store.index.characters[held_out_indices].tolist()
        windows = split_windows(records, characters, config.held_out_characters)
        train = np.setdiff1d(all_records, held_out_indices)
        return _dataset_split(config, store, train, store.index, held_out_indices, windows, groups, [], digest)
    in_file = list(read_records(held_out))
    index = read_index(in_file)
    notes = _overlap(store.index, index)
    windows = split_windows(in_file, index.characters.tolist(), config.held_out_characters)
    return _dataset_split(config, store, all_records, index, np.arange(len(index)), windows, groups, notes, digest)


def data_digest(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a digest of the files of the data, the held-out text and the retention data, and of the tokenizer.

    Raises:
        TsugikiError: a file cannot be read.
    """
    return _data_digest(config, tokenizer, content_key(config.data))


def _data_digest(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", key: str) -> str:
    held_out = parse_held_out(config.held_out)
    digests = {"data": store_key(key, tokenizer, config.assistant_turns)}
    if isinstance(held_out, Path):
        digests["held_out"] = content_key(held_out)
    if config.retention_data is not None:
        digests["retention_data"] = content_key(config.retention_data)
    return combined_digest(digests)


def pack_data(
    config: RunConfig, split: DatasetSplit, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> PackedDataset:
    """Pack the training records into rows for this model.

    Raises:
        TsugikiError: `block_size` is longer than the model's context, or a prompt fills a whole row.
    """
    size = _block_size(config, model)
    masking = _document_masking(config, model)
    blocks = pack(split.store, split.train, size, document_end(tokenizer), share_rows=masking != "separate_rows")
    notes = [*split.notes]
    if masking == "separate_rows":
        notes.append(
            f"{config.model} cannot mask documents in the same row from each other: each document has separate rows, "
            "which are padded"
        )
    if blocks.cut_records:
        notes.append(
            f"{blocks.cut_records:,} examples are longer than a block of {size} tokens: "
            f"{blocks.cut_tokens:,} tokens at their ends are cut off"
        )
    summary = DataSummary(
        **dict(split.summary),
        blocks=len(blocks),
        block_size=size,
        blocks_fingerprint=blocks.fingerprint(),
        document_masking=masking,
        target_tokens_per_epoch=blocks.target_tokens,
        tokens_per_epoch=blocks.tokens,
        padding=len(blocks) * size - blocks.tokens,
        split_records=blocks.split_records,
        cut_records=blocks.cut_records,
        cut_tokens=blocks.cut_tokens,
    )
    return PackedDataset(blocks, split.windows, split.retention_windows, masking, summary, notes)


def single_document(data: str) -> Document | None:
    """Return the document if the data consist of one document only, otherwise None."""
    first = list(islice(read_records(data), 2))
    return first[0] if len(first) == 1 and isinstance(first[0], Document) else None


def _split_document(
    config: RunConfig,
    document: Document,
    held_out: float,
    tokenizer: "PreTrainedTokenizerBase",
    key: str,
    digest: str,
    progress: ProgressDisplay,
) -> DatasetSplit:
    """Hold out the end of the only document, whose file has the content `key`."""
    records = split_document(document, held_out)
    store = _tokenise(config, records, f"{key}\0{held_out}", tokenizer, progress)
    train, held_out_indices = np.array([0]), np.array([1])
    windows = split_windows(records[1:], store.index.characters[held_out_indices].tolist(), config.held_out_characters)
    notes = [f"one document: its last {held_out:.0%} is held out"]
    return _dataset_split(config, store, train, store.index, held_out_indices, windows, [], notes, digest)


def _tokenise(
    config: RunConfig,
    records: Sequence[Record] | None,
    key: str,
    tokenizer: "PreTrainedTokenizerBase",
    progress: ProgressDisplay,
) -> TokenStore:
    """Return the tokens of `records` (None: of `config.data`), from the cache if it has them under `key`."""
    with progress.stage("tokenising", None) as advance:
        return open_store(
            read_records(config.data) if records is None else records,
            key,
            tokenizer,
            config.assistant_turns,
            cache_folder("tokens"),
            advance,
        )


def _dataset_split(
    config: RunConfig,
    store: TokenStore,
    train: Integers,
    held_out: RecordIndex,
    held_out_indices: Integers,
    windows: list[Window],
    groups: list[list[int]],
    notes: list[str],
    digest: str,
) -> DatasetSplit:
    """Count the records and read the retention data.

    Args:
        config: the settings.
        store: the tokens of all records in `config.data`.
        train: indices of the training records in `store`.
        held_out: the index that contains the held-out records.
        held_out_indices: indices of the held-out records in `held_out`.
        windows: their text.
        groups: groups of near-duplicates, as indices in `store`.
        notes: what is unusual so far.
        digest: from `_data_digest`.
    """
    duplicates = sum(map(len, groups))
    if groups:
        notes.append(f"{duplicates:,} records are near-duplicates of others ({len(groups):,} groups, kept together)")
    first = [[store.index.name(number) for number in group] for group in groups[:_SHOWN_GROUPS]]
    summary = SplitSummary(
        digest=digest,
        train=RecordCounts(**_counts(store.index, train)),
        held_out=HeldOutCounts(
            **_counts(held_out, held_out_indices),
            measured_characters=sum(len(window.record.text) for window in windows),
        ),
        near_duplicates=NearDuplicates(groups=len(groups), records=duplicates, first=first),
    )
    data = config.retention_data
    retention_windows = read_windows(data, config.held_out_characters) if data is not None else []
    return DatasetSplit(store, train, windows, retention_windows, summary, notes)


def _counts(index: RecordIndex, records: Integers) -> dict[str, Any]:
    return {
        "documents": len(records),
        "characters": int(index.characters[records].sum()),
        "fingerprint": index.fingerprint(records),
    }


def _overlap(train: RecordIndex, held_out: RecordIndex) -> list[str]:
    """Return a note if the held-out file has near-duplicates of training records.

    Raises:
        TsugikiError: the held-out file contains training records.
    """
    same, near = find_overlap(train, held_out)
    if same:
        raise TsugikiError(
            f"{len(same):,} records of the training data are in the held-out file as well: {summarise_list(same)}; "
            "remove them from one of the two, because held-out text must not be trained on"
        )
    if not near:
        return []
    return [f"{len(near):,} training records are nearly the same as held-out ones: {summarise_list(near)}"]


def _block_size(config: RunConfig, model: "PreTrainedModel") -> int:
    prompt = _virtual_tokens(config)
    available = context_length(model) - prompt
    if config.block_size and config.block_size > available:
        after_prompt = f", {prompt} of which the soft prompt takes: {available} are left" if prompt else ""
        raise TsugikiError(
            f"block_size is {config.block_size}, but the model's context is {available + prompt} tokens{after_prompt}"
        )
    return config.block_size or min(_BLOCK_SIZE, available)


def _document_masking(config: RunConfig, model: "PreTrainedModel") -> DocumentMasking:
    """Return how this model can mask documents in a row from each other, given the soft prompt of the run, if any.

    The soft prompt comes before every document, so the model is probed with one of the same length.
    """
    if attends_to_later_tokens(model):
        raise TsugikiError(
            f"{type(model).__name__} attends to later tokens, so predicting them teaches it nothing; if its "
            "config.json has is_decoder, set it to true"
        )
    length, row_length = _virtual_tokens(config), _block_size(config, model)
    if not length:
        return detect_document_masking(model, row_length)
    # The probe's prompt consists of embeddings of real tokens. A normally distributed prompt causes so much rounding
    # error in bfloat16 that the probe could not tell the documents apart.
    with seeded(0):  # a resumed run must get the same answer
        graft(model, PromptTuningConfig(length, prompt_tuning_init="SAMPLE_VOCAB"))
    try:
        return detect_document_masking(model, row_length)
    finally:
        ungraft(model)


def _virtual_tokens(config: RunConfig) -> int:
    """Return the length of the soft prompt that the run trains; 0 if it trains none."""
    return getattr(config.adapter_config, "num_virtual_tokens", 0)
