"""All records of a data set, tokenised once and kept on disk, however many there are.

A store is a folder, written in one pass over the records and read through the page cache:

    ids.bin              every record's tokens, one after another, uint16 or int32 (as the vocabulary asks)
    learned.bin          one byte a token: 1 where it is to be learned
    index.safetensors    a row a record: where its tokens begin, characters, digest, signature, kind
    records.jsonl        a line a record: where it came from, and its fields
    store.json           the format and the type of ids.bin; written last

What is held in memory is the index: about 0.6 KB a record.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.data.duplicates import signature
from tsugiki.data.encoding import document_end, document_start, encode_records
from tsugiki.data.records import AssistantTurns, Conversation, Document, Record
from tsugiki.errors import TsugikiError, summarise_list

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array: TypeAlias = npt.NDArray[Any]

_FORMAT = 1
# Records and characters a call of the tokenizer: enough to use every core, little enough to hold.
_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 1 << 20
_DIGEST = 16


@dataclass(frozen=True, eq=False)
class Index:
    """What is known of each record but its tokens; arrays and lists have a row a record."""

    characters: Array
    """int64 [records], code points."""
    digests: Array
    """uint8 [records, 16], the beginning of the text's SHA-256."""
    signatures: Array
    """[records, …], see `duplicates.signature`."""
    splittable: Array
    """bool [records]: a document, which goes on in another row where it is too long; else it is cut off."""
    sources: list[str]
    fields: list[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.sources)

    def name(self, record: int) -> str:
        """Where a record came from, and its title if it has one."""
        return " ".join(filter(None, (self.sources[record], self.fields[record].get("title"))))

    def fingerprint(self, records: Array) -> str:
        """`sha256:` and 64 digits over the texts of the records with these numbers, in order."""
        return f"sha256:{hashlib.sha256(np.ascontiguousarray(self.digests[records]).tobytes()).hexdigest()}"


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The tokens of every record, and their index."""

    index: Index
    ids: Array
    """[tokens], memory-mapped."""
    learned: Array
    """bool [tokens], memory-mapped; a record's first token is never learned."""
    offsets: Array
    """int64 [records + 1]: record i has the tokens from offsets[i] to offsets[i + 1]."""


def open_store(
    records: Iterable[Record],
    key: str,
    tokenizer: "PreTrainedTokenizerBase",
    turns: AssistantTurns,
    cache: Path,
    advance: Callable[[int], None] = lambda done: None,
) -> TokenStore:
    """The store of these records: the one in the cache, or a new one.

    Args:
        records: read only where there is no store yet.
        key: of the records' content (`sources.content_key`).
        tokenizer: of the base model.
        turns: which of an assistant's turns are learned.
        cache: the folder that holds the stores.
        advance: called with the number of records done since the last call.

    Raises:
        TsugikiError: records without anything to learn, or what reading and encoding raise.
    """
    folder = cache / _store_key(key, tokenizer, turns)
    if not (folder / "store.json").is_file():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            _write(part, records, tokenizer, turns, advance)
            shutil.rmtree(folder, ignore_errors=True)  # what another version left
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return _read(folder)


def read_index(records: Iterable[Record]) -> Index:
    """The index alone, of records that are not tokenised."""
    rows = _Rows()
    for record in records:
        rows.add(record)
    return rows.index()


class _Rows:
    """An index that grows."""

    def __init__(self) -> None:
        self.characters: list[int] = []
        self.digests = bytearray()
        self.signatures: list[Array] = []
        self.splittable: list[bool] = []
        self.sources: list[str] = []
        self.fields: list[Mapping[str, str]] = []

    def add(self, record: Record) -> None:
        self.characters.append(len(record.text))
        self.digests += hashlib.sha256(record.text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST]
        self.signatures.append(signature(_compared(record)))
        self.splittable.append(isinstance(record, Document))
        self.sources.append(record.source)
        self.fields.append(record.fields)

    def index(self) -> Index:
        return Index(
            characters=np.array(self.characters, np.int64),
            digests=np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, _DIGEST),
            signatures=np.stack(self.signatures),
            splittable=np.array(self.splittable, np.bool_),
            sources=self.sources,
            fields=self.fields,
        )


def _write(
    folder: Path,
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerBase",
    turns: AssistantTurns,
    advance: Callable[[int], None],
) -> None:
    from safetensors.numpy import save_file

    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    rows, lengths = _Rows(), [0]
    nothing: list[str] = []
    with (folder / "ids.bin").open("wb") as ids, (folder / "learned.bin").open("wb") as learned:
        for batch in _batches(records):
            for record, encoded in zip(batch, encode_records(tokenizer, batch, turns), strict=True):
                if not encoded.target_tokens:
                    nothing.append(record.source)
                rows.add(record)
                lengths.append(len(encoded.ids))
                ids.write(np.array(encoded.ids, dtype).tobytes())
                learned.write(np.array([False, *encoded.learned[1:]], np.bool_).tobytes())
            advance(len(batch))
    if nothing:
        raise TsugikiError(
            f"{summarise_list(nothing)}: there is nothing to learn; take it out, or give it an answer to learn"
        )
    index = rows.index()
    with (folder / "records.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for source, fields in zip(index.sources, index.fields, strict=True):
            lines.write(json.dumps([source, dict(fields)], ensure_ascii=False) + "\n")
    save_file(
        {
            "offsets": np.cumsum(lengths, dtype=np.int64),
            "characters": index.characters,
            "digests": index.digests,
            "signatures": index.signatures,
            "cuttable": index.splittable,
        },
        folder / "index.safetensors",
    )
    (folder / "store.json").write_text(json.dumps({"format": _FORMAT, "ids": np.dtype(dtype).name}), encoding="utf-8")


def _read(folder: Path) -> TokenStore:
    from safetensors.numpy import load_file

    dtype = np.dtype(json.loads((folder / "store.json").read_text(encoding="utf-8"))["ids"])
    tensors = load_file(folder / "index.safetensors")
    with (folder / "records.jsonl").open(encoding="utf-8") as lines:
        described = [json.loads(line) for line in lines]
    return TokenStore(
        index=Index(
            characters=tensors["characters"],
            digests=tensors["digests"],
            signatures=tensors["signatures"],
            splittable=tensors["cuttable"],
            sources=[source for source, _ in described],
            fields=[fields for _, fields in described],
        ),
        ids=np.memmap(folder / "ids.bin", dtype, mode="r"),
        learned=np.memmap(folder / "learned.bin", np.bool_, mode="r"),
        offsets=tensors["offsets"],
    )


def _store_key(key: str, tokenizer: "PreTrainedTokenizerBase", turns: AssistantTurns) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\0{key}\0{turns}\0{tokenizer.chat_template}\0".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))).encode())
    digest.update(repr((document_start(tokenizer), document_end(tokenizer))).encode())
    return digest.hexdigest()


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text)
        if len(batch) == _AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _compared(record: Record) -> str:
    """What near-duplicates are found by: not the instructions that many conversations share."""
    if isinstance(record, Conversation):
        return "\n".join(turn.content for turn in record.messages if turn.role not in ("system", "developer"))
    return record.text
