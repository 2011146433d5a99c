"""A data set, tokenised once and kept on disk, so that its size is not limited by memory.

A store is a folder that is written in one pass over the records and memory-mapped for reading:

    ids.bin         the token ids of all records, one after another, uint16 or int32 depending on the vocabulary
    loss_mask.bin   one byte per token: 1 if the token counts in the loss
    offsets.bin     the number of tokens before each record, and after the last one
    characters.bin, digests.bin, signatures.bin, splittable.bin     see `RecordIndex`
    records.jsonl   for each record: its source and its fields
    lines.bin       the number of bytes before each line of records.jsonl, and after the last one
    reading.json    how the files of the records were read
    store.json      the key of the store, and the digests of the other files; written last
    checked.json    size, time and inode of each large file when its digest was last checked

The first process that needs a store writes it, and the others wait for it. The digests are checked when a store is
opened, that of a large file only after it has changed; a damaged store, or one of another key, is written again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.duplicates import SLOTS, signatures
from tsugiki.data.encoding import EncodedRecord, document_end, document_start, encode_records
from tsugiki.data.records import AssistantTurns, Document, Reading, Record, answer, question, text_to_compare
from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.io.atomic import DAY, new_folder, remove_leftovers
from tsugiki.io.cache import another_place
from tsugiki.io.digests import changed_files, combined_digest, file_sha256, sha256, sha256_bytes
from tsugiki.io.json import read_json, write_json
from tsugiki.io.locks import locked
from tsugiki.language import _

Array: TypeAlias = npt.NDArray[Any]

_FORMAT = 8  # the version of the files
_ENCODING = 4  # how texts become tokens; a change of it ends the resuming of runs
DIGEST_BYTES = 16
_RECORDS, _READING, _CHECKED = "records.jsonl", "reading.json", "checked.json"
_COLUMNS = {
    "characters": np.dtype(np.int64),
    "digests": np.dtype((np.uint8, DIGEST_BYTES)),
    "signatures": np.dtype((np.uint32, SLOTS)),
    "splittable": np.dtype(np.bool_),
    "questions": np.dtype(np.uint64),
    "answers": np.dtype(np.uint64),
}
_ARRAYS = ("ids", "loss_mask", "offsets", "lines", *_COLUMNS)
_FILES = {f"{name}.bin" for name in _ARRAYS} | {_RECORDS, _READING}
_LARGE = 1 << 26  # bytes; to read a smaller file takes some hundredths of a second
# Limits of one call of the tokenizer: large enough to use all cores, small enough for memory.
_BATCH_RECORDS, _BATCH_CHARACTERS = 64, 1 << 20


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """Everything about the records except their tokens; arrays and sequences have one entry per record.

    In a store they are memory-mapped: what is not used takes no memory.
    """

    characters: Array
    """int64 [records]: the length of the text in code points."""
    digests: Array
    """uint8 [records, 16]: the first bytes of the text's SHA-256."""
    signatures: Array
    """uint32 [records, 126]: see `duplicates.signature`."""
    splittable: Array
    """bool [records]: whether a long record may continue in another row (documents); other records are cut off."""
    questions: Array
    """uint64 [records]: the first bytes of the SHA-256 of `records.question`; 0: there is none."""
    answers: Array
    """uint64 [records]: the same of `records.answer`."""
    sources: Sequence[str]
    fields: Sequence[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.characters)

    def name(self, record: int) -> str:
        """Return the source of a record, with its title if it has one."""
        return " ".join(filter(None, (self.sources[record], self.fields[record].get("title"))))

    def fingerprint(self, records: Array) -> str:
        """Return `sha256:` and 64 hexadecimal digits over the texts of these records, in order."""
        return sha256([np.ascontiguousarray(self.digests[records]).tobytes()])


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The tokens and the index of all records."""

    index: RecordIndex
    ids: Array
    """uint16 or int32 [tokens], memory-mapped."""
    loss_mask: Array
    """bool [tokens], memory-mapped: whether a token counts in the loss; False for the first token of each record."""
    offsets: Array
    """int64 [records + 1]: the tokens of record i are ids[offsets[i] : offsets[i + 1]]."""
    digest: str = ""
    """Identifies the tokens and which of them count in the loss; empty for a store that is not in the cache."""
    reading: Reading = field(default_factory=Reading)
    """Facts about how the files of the records were read."""


def open_store(
    records: Iterable[Record],
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    turns: AssistantTurns,
    cache: Path,
    advance: Callable[[int], None] = lambda done: None,
    reading: Reading | None = None,
) -> TokenStore:
    """Open the store of these records from the cache, or tokenise the records and write it.

    The records, whose content `key` identifies (see `read.files.content_key`), are not read if the folder `cache` has
    their store. `advance` is called with the number of records that were tokenised since the last call. `reading` has
    facts about the files, which are complete when all records are read, and is written with the tokens. Its names of
    files are part of the names of the records, so a store belongs to them, too. A record of which no token counts in
    the loss is an error.
    """
    reading = Reading() if reading is None else reading
    described = "\0".join([store_key(key, tokenizer, turns), *reading.files])
    name = f"{sha256([described.encode('utf-8', 'surrogatepass')]).removeprefix('sha256:')}-{_FORMAT}"
    folder = cache / name
    if store := _read(folder):
        return store
    with another_place(), locked(cache / f".{name}.lock", folder):
        remove_leftovers(cache, of=name)  # left by killed processes, since running ones wait for the lock
        remove_leftovers(cache, older_than=DAY)
        store = _read(folder)  # another process may have written it since
        if store is None:
            if folder.exists():
                warn_caller(_("the cached tokens in {folder} are damaged, and are written again", folder=folder))
            with new_folder(folder, replace=True) as temporary:
                _write(temporary, name, records, tokenizer, turns, advance, reading)
            store = _read(folder)
    if store is None:
        raise TsugikiError("the tokens in {folder} cannot be read after writing; check the disk", folder=folder)
    return store


def read_index(records: Iterable[Record]) -> RecordIndex:
    """Return the index of records without tokenising them; all of it is held in memory, about 1 kB per record."""
    columns: list[dict[str, Array]] = []
    sources: list[str] = []
    fields: list[Mapping[str, str]] = []
    for batch in batches(records):
        columns.append(_columns(batch))
        sources += [record.source for record in batch]
        fields += [record.fields for record in batch]
    joined = {name: np.concatenate([part[name] for part in columns]) for name in _COLUMNS}
    return RecordIndex(**joined, sources=sources, fields=fields)


def _columns(batch: Sequence[Record]) -> dict[str, Array]:
    """Return the arrays of the index for some records."""
    texts = [record.text.encode("utf-8", "surrogatepass") for record in batch]
    digests = b"".join(sha256_bytes(text)[:DIGEST_BYTES] for text in texts)
    return {
        "characters": np.array([len(record.text) for record in batch], np.int64),
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
        "signatures": signatures([text_to_compare(record) for record in batch]),
        "splittable": np.array([isinstance(record, Document) for record in batch], np.bool_),
        "questions": np.array([text_key(question(record)) for record in batch], np.uint64),
        "answers": np.array([text_key(answer(record)) for record in batch], np.uint64),
    }


def text_key(text: str) -> int:
    """Return the entry of a text in the `questions` or `answers` of an index."""
    return int.from_bytes(sha256_bytes(text.encode("utf-8", "surrogatepass"))[:8]) if text else 0


def _write(
    folder: Path,
    key: str,
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    turns: AssistantTurns,
    advance: Callable[[int], None],
    reading: Reading,
) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    without_target: list[str] = []
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _ARRAYS
        }
        texts = stack.enter_context((folder / _RECORDS).open("wb"))
        ends = {name: np.zeros(1, np.int64) for name in ("offsets", "lines")}
        for name, end in ends.items():
            files[name].write(end.tobytes())
        for batch in batches(records):
            encoded = encode_records(tokenizer, batch, turns)
            without_target += [
                record.source for record, one in zip(batch, encoded, strict=True) if not one.target_tokens
            ]
            reading.special_tokens += sum(
                record.text.count(name)
                for record in batch
                if isinstance(record, Document)
                for name in tokenizer.all_special_tokens
            )
            described = [json.dumps([record.source, dict(record.fields)], ensure_ascii=False) for record in batch]
            lines = [line.encode("utf-8", "surrogatepass") + b"\n" for line in described]
            ends["offsets"] = ends["offsets"][-1] + np.cumsum([len(one.ids) for one in encoded])
            ends["lines"] = ends["lines"][-1] + np.cumsum([len(line) for line in lines])
            arrays = {
                "ids": np.concatenate([np.asarray(one.ids, dtype) for one in encoded]),
                "loss_mask": np.concatenate([_loss_mask(one) for one in encoded]),
                **ends,
                **_columns(batch),
            }
            for name, array in arrays.items():
                files[name].write(array.tobytes())
            texts.write(b"".join(lines))
            advance(len(batch))
    if without_target:
        raise TsugikiError(
            "{without_target}: there is nothing to train on; remove the record, or add an answer",
            without_target=summarise_list(without_target),
        )
    write_json(folder / _READING, asdict(reading))
    digests = {name: file_sha256(folder / name) for name in sorted(_FILES)}
    write_json(folder / "store.json", {"key": key, "digests": digests})
    _note_as_checked(folder, _large_files(folder))


def _loss_mask(encoded: EncodedRecord) -> Array:
    mask = np.array(encoded.loss_mask, np.bool_)
    mask[:1] = False  # nothing predicts the first token
    return mask


def _read(folder: Path) -> TokenStore | None:
    """Open the store in a folder; return None if there is none, if it is damaged, or if it belongs to another key."""
    try:
        content = read_json(folder / "store.json")
    except TsugikiError:
        return None
    digests = content.get("digests")
    if not isinstance(digests, dict) or digests.keys() != _FILES or content.get("key") != folder.name:
        return None
    if not _is_intact(folder, digests):
        return None
    offsets = _mapped(folder / "offsets.bin", np.dtype(np.int64))
    lines = _mapped(folder / "lines.bin", np.dtype(np.int64))
    text = _mapped(folder / _RECORDS, np.dtype(np.uint8))
    is_short = (folder / "ids.bin").stat().st_size == 2 * int(offsets[-1])
    return TokenStore(
        index=RecordIndex(
            **{name: _mapped(folder / f"{name}.bin", dtype) for name, dtype in _COLUMNS.items()},
            sources=_Described(text, lines, 0),
            fields=_Described(text, lines, 1),
        ),
        ids=_mapped(folder / "ids.bin", np.dtype(np.uint16 if is_short else np.int32)),
        loss_mask=_mapped(folder / "loss_mask.bin", np.dtype(np.bool_)),
        offsets=offsets,
        digest=combined_digest({name: digests[name] for name in ("ids.bin", "loss_mask.bin")}),
        reading=Reading(**read_json(folder / _READING)),
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> Array:
    return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain array, because parts of a `memmap` are slow to make


@dataclass(frozen=True, eq=False)
class _Described(Sequence[Any]):
    """The sources or the fields of the records, each read from its line when it is needed."""

    text: Array
    """uint8 [bytes]: the content of records.jsonl."""
    lines: Array
    """int64 [records + 1]: line i is text[lines[i] : lines[i + 1]]."""
    place: int
    """0: the sources; 1: the fields."""

    def __len__(self) -> int:
        return len(self.lines) - 1

    def __getitem__(self, record: Any) -> Any:
        line = self.text[self.lines[record] : self.lines[record + 1]].tobytes()
        return json.loads(line.decode("utf-8", "surrogatepass"))[self.place]


def _is_intact(folder: Path, digests: Mapping[str, str]) -> bool:
    """Check the digests of all files except large ones that have not changed since the last check."""
    try:
        large = _large_files(folder)
    except OSError:  # a file is missing
        return False
    checked: Mapping[str, Any] = {}
    with suppress(TsugikiError):
        checked = read_json(folder / _CHECKED)
    unchanged = {name for name, state in large.items() if checked.get(name) == state}
    if changed_files(folder, {name: digest for name, digest in digests.items() if name not in unchanged}):
        return False
    if unchanged != large.keys():
        with suppress(TsugikiError):  # a cache that only others may write
            _note_as_checked(folder, large)
    return True


def _large_files(folder: Path) -> dict[str, list[int]]:
    """Return size, time of the last change and inode of each large file."""
    found = {name: (folder / name).stat() for name in _FILES}
    return {
        name: [status.st_size, status.st_mtime_ns, status.st_ino]
        for name, status in found.items()
        if status.st_size >= _LARGE
    }


def _note_as_checked(folder: Path, large: Mapping[str, list[int]]) -> None:
    if large:
        write_json(folder / _CHECKED, dict(large))


def store_key(key: str, tokenizer: PreTrainedTokenizerBase, turns: AssistantTurns) -> str:
    """Return 64 hexadecimal digits that identify the tokens of records; the arguments are those of `open_store`."""
    ends = repr((document_start(tokenizer), document_end(tokenizer)))
    described = f"{_ENCODING}\0{key}\0{turns}\0{tokenizer.chat_template}\0{_tokenizer_key(tokenizer)}{ends}"
    return sha256([described.encode("utf-8", "surrogatepass")]).removeprefix("sha256:")


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that differs between tokenizers that encode texts differently."""
    name = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return f"{name}\0{backend.to_str()}"
    vocabulary = sorted(tokenizer.get_vocab().items(), key=itemgetter(1))
    kwargs = sorted(tokenizer.init_kwargs.items())
    settings = [(key, value) for key, value in kwargs if isinstance(value, str | int | float | None)]
    return f"{name}\0{vocabulary}\0{settings}"


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records in lists of limited size."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text)
        if len(batch) == _BATCH_RECORDS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
