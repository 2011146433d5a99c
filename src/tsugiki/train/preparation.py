"""From a run's data to what is learned and what is measured, with everything counted that a person should know."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tsugiki.base.inference import seeded
from tsugiki.data.blocks import Blocks, Integers, pack
from tsugiki.data.encoding import document_end
from tsugiki.data.records import Document, Record
from tsugiki.data.sources import content_key, read_records
from tsugiki.data.splits import (
    Condition,
    learned_and_measured,
    near_groups,
    parse_held_out,
    split_one,
    split_records,
)
from tsugiki.data.store import Index, TokenStore, open_store, read_index
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.document_masking import DocumentMasking, detect_document_masking
from tsugiki.io.cache import cache_folder
from tsugiki.io.progress import RunProgress
from tsugiki.lora.graft import graft, ungraft
from tsugiki.methods.prompt_tuning import PromptTuningConfig
from tsugiki.methods.soft_prompt import context_length
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.evaluate import Window, cut_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK_SIZE = 512


@dataclass(frozen=True)
class PackedDataset:
    """What a run trains on and is measured by."""

    blocks: Blocks
    windows: list[Window]
    """Of the held-out text."""
    retention_windows: list[Window]
    """Of the base's own kind of text, if there is any."""
    isolation: DocumentMasking
    summary: dict[str, Any]
    """Counts and fingerprints, for the record."""
    notes: list[str]
    """What is unusual about the data, a sentence each."""


@dataclass(frozen=True)
class Data:
    """The records of a run, tokenised and split."""

    store: TokenStore
    train: Integers
    """Numbers of the records that are learned, in the store."""
    held_out: Index
    measured: Integers
    """Numbers of the held-out records in `held_out`."""
    records: Iterable[Record]
    """The held-out records themselves; to be read once."""
    groups: list[list[int]]
    """Numbers of near-duplicates in the store."""
    notes: list[str]


def read_data(config: RunConfig, tokenizer: "PreTrainedTokenizerBase", progress: RunProgress) -> Data:
    """Read, tokenise and split the data of a run.

    Raises:
        TsugikiError: data that cannot be read, learned or split as the config says.
    """
    held_out = parse_held_out(config.held_out)
    single = single_document(config.data) if isinstance(held_out, float) else None
    records: Iterable[Record] = split_one(single, held_out) if single and isinstance(held_out, float) else ()
    key = content_key(config.data) + (f"\0{held_out}" if single else "")
    with progress.stage("tokenising", None) as advance:
        store = open_store(
            records or read_records(config.data),
            key,
            tokenizer,
            config.assistant_turns,
            cache_folder("tokens"),
            advance,
        )
    everything = np.arange(len(store.index))
    if single:
        notes = [f"one document: its last {held_out:.0%} is held out"]
        return Data(store, everything[:1], store.index, everything[1:], list(records)[1:], [], notes)
    with progress.stage("looking for near-duplicates", None):
        groups = near_groups(store.index)
    if isinstance(held_out, float | Condition):
        measured = split_records(store.index, held_out, config.seed, groups)
        train = np.setdiff1d(everything, measured)
        chosen = _chosen(read_records(config.data), set(measured.tolist()))
        return Data(store, train, store.index, measured, chosen, groups, [])
    other = read_index(read_records(held_out))
    notes = _overlap(store.index, other)
    return Data(store, everything, other, np.arange(len(other)), read_records(held_out), groups, notes)


def pack_data(
    config: RunConfig, data: Data, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> PackedDataset:
    """Pack the data into rows for this model, and count.

    Raises:
        TsugikiError: blocks longer than the model's context, or prompts longer than a block.
    """
    size = _block_size(config, model)
    isolation = _isolation(config, model)
    blocks = pack(data.store, data.train, size, document_end(tokenizer), share_rows=isolation != "rows")
    characters = data.held_out.characters[data.measured].tolist()
    windows = cut_windows(data.records, characters, config.held_out_characters)
    retention_windows = _retention_windows(config)
    index = data.store.index
    summary = {
        "train": _summary(index, data.train),
        "held_out": {
            **_summary(data.held_out, data.measured),
            "measured_characters": sum(len(window.record.text) for window in windows),
        },
        "near_duplicates": {
            "groups": len(data.groups),
            "records": sum(map(len, data.groups)),
            "first": [[index.name(number) for number in group] for group in data.groups[:5]],
        },
        "blocks": len(blocks),
        "block_size": size,
        "blocks_fingerprint": blocks.fingerprint(),
        "isolation": isolation,
        "learned_tokens_per_epoch": blocks.target_tokens,
        "tokens_per_epoch": blocks.tokens,
        "padding": len(blocks) * size - blocks.tokens,
        "split_records": blocks.split_records,
        "cut_records": blocks.cut_records,
        "cut_tokens": blocks.cut_tokens,
    }
    notes = [*data.notes]
    if isolation == "rows":
        notes.append(f"{config.model} cannot keep documents in one row apart: each has rows of its own, padded")
    if blocks.cut_records:
        notes.append(
            f"{blocks.cut_records:,} examples are longer than a block of {size} tokens: "
            f"{blocks.cut_tokens:,} tokens are cut off at their ends"
        )
    if data.groups:
        count = sum(map(len, data.groups))
        notes.append(f"{count:,} records are near-duplicates of others ({len(data.groups):,} groups, kept together)")
    return PackedDataset(blocks, windows, retention_windows, isolation, summary, notes)


def _overlap(train: Index, held_out: Index) -> list[str]:
    same, near = learned_and_measured(train, held_out)
    if same:
        raise TsugikiError(
            f"{len(same):,} records of the training data are in the held-out file as well: {summarise_list(same)}; "
            "take them out of one, since what is measured must not be learned"
        )
    if not near:
        return []
    return [f"{len(near):,} training records are nearly the same as held-out ones: {summarise_list(near)}"]


def _retention_windows(config: RunConfig) -> list[Window]:
    if config.retention_data is None:
        return []
    characters = [len(record.text) for record in read_records(config.retention_data)]
    return cut_windows(read_records(config.retention_data), characters, config.held_out_characters)


def single_document(data: str) -> Document | None:
    """The document that is all there is in the data, if so: its end is held out then."""
    first = list(islice(read_records(data), 2))
    return first[0] if len(first) == 1 and isinstance(first[0], Document) else None


def _chosen(records: Iterable[Record], numbers: set[int]) -> Iterator[Record]:
    return (record for number, record in enumerate(records) if number in numbers)


def _summary(index: Index, records: Integers) -> dict[str, Any]:
    return {
        "documents": len(records),
        "characters": int(index.characters[records].sum()),
        "fingerprint": index.fingerprint(records),
    }


def _block_size(config: RunConfig, model: "PreTrainedModel") -> int:
    prompt = _virtual_tokens(config)
    room = context_length(model) - prompt
    behind = f", {prompt} of which the soft prompt takes: {room} are left" if prompt else ""
    if config.block_size and config.block_size > room:
        raise TsugikiError(
            f"block_size is {config.block_size}, but the model's context is {room + prompt} tokens{behind}"
        )
    return config.block_size or min(_BLOCK_SIZE, room)


def _isolation(config: RunConfig, model: "PreTrainedModel") -> DocumentMasking:
    """How documents are kept apart, behind the soft prompt if the run trains one: it stands before each of them."""
    length = _virtual_tokens(config)
    if not length:
        return detect_document_masking(model)
    # Of real tokens: a prompt from the normal distribution makes so much noise in bfloat16 that nothing could be told.
    with seeded(0):  # a run that is resumed must come to the same answer
        graft(model, PromptTuningConfig(length, prompt_tuning_init="SAMPLE_VOCAB"))
    try:
        return detect_document_masking(model)
    finally:
        ungraft(model)


def _virtual_tokens(config: RunConfig) -> int:
    """Length of the soft prompt that the run trains; 0 where it trains none."""
    return int(getattr(config.adapter_config(), "num_virtual_tokens", 0))
