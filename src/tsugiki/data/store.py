"""A data set, tokenised once and kept on disk, so that its size is not limited by memory.

A store is a folder that is written in one pass over the records and memory-mapped for reading:

    ids.bin              the token ids of all records, one after another, uint16 or int32 depending on the vocabulary
    loss_mask.bin        one byte per token: 1 if the token counts in the loss
    index.safetensors    for each record: offset of its first token, characters, digest, signature, kind
    records.jsonl        for each record: its source and its fields
    reading.json         how the files of the records were read
    store.json           the version of the format, and the digests of the other files; written last

Only the index is held in memory, about 0.6 kB per record. Several processes can use one cache: the first process that
needs a store writes it, and the others wait for it. The digests are checked when a store is opened; a damaged store is
written again.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.data.duplicates import signatures
from tsugiki.data.encoding import document_end, document_start, encode, encode_records
from tsugiki.data.reading import Reading
from tsugiki.data.records import AssistantTurns, Conversation, Document, Record
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.atomic import DAY, new_folder, remove_leftovers
from tsugiki.io.digests import changed_files, file_sha256, sha256, sha256_bytes
from tsugiki.io.json import read_json, write_json
from tsugiki.io.locks import locked
from tsugiki.language import _

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array: TypeAlias = npt.NDArray[Any]

_FORMAT = 3
_FILES = frozenset({"ids.bin", "loss_mask.bin", "index.safetensors", "records.jsonl"})
_READING = "reading.json"  # missing in stores of earlier versions
# Limits of one call of the tokenizer: large enough to use all cores, small enough for memory.
_BATCH_RECORDS, _BATCH_CHARACTERS = 64, 1 << 20
DIGEST_BYTES = 16
# Spaces, cases, digits, accents, widths, scripts, emoji, and words that tokenizers split differently.
_PROBE = (
    "Hello,  World! don't re-enter 1234.5 3rd\n\t naïve e\u0301 ﬁ Ａｂ１ ｶﾞ カ\u3099 "
    "吾輩は猫である。名前はまだ無い、𠮷野家 한국어 🙂👍🏽 <s></s> https://a.b/c?d=e"
)
_PROBE_TOKENS = 2000


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """Everything about the records except their tokens; arrays and lists have one entry per record."""

    characters: Array
    """int64 [records]: the length of the text in code points."""
    digests: Array
    """uint8 [records, 16]: the first bytes of the text's SHA-256."""
    signatures: Array
    """uint32 [records, 126]: see `duplicates.signature`."""
    splittable: Array
    """bool [records]: whether a long record may continue in another row (documents); other records are cut off."""
    sources: list[str]
    fields: list[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.sources)

    def name(self, record: int) -> str:
        """Return the source of a record, with its title if it has one."""
        return " ".join(filter(None, (self.sources[record], self.fields[record].get("title"))))

    def part(self, records: Array) -> "RecordIndex":
        """Return the index of some records only."""
        return RecordIndex(
            self.characters[records],
            self.digests[records],
            self.signatures[records],
            self.splittable[records],
            [self.sources[record] for record in records],
            [self.fields[record] for record in records],
        )

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
    reading: Reading = field(default_factory=Reading)
    """Facts about how the files of the records were read."""


def open_store(
    records: Iterable[Record],
    key: str,
    tokenizer: "PreTrainedTokenizerBase",
    turns: AssistantTurns,
    cache: Path,
    advance: Callable[[int], None] = lambda done: None,
    reading: Reading | None = None,
) -> TokenStore:
    """Open the store of these records from the cache, or tokenise the records and write it.

    Args:
        records: the records; not read if the cache has their store.
        key: identifies the content of the records (see `sources.content_key`).
        tokenizer: the tokenizer of the base model.
        turns: which of the assistant's turns count in the loss.
        cache: the folder of all stores.
        advance: called with the number of records that were tokenised since the last call.
        reading: facts about the files, which are complete when all records are read; written with the tokens.

    Raises:
        TsugikiError: no token of a record counts in the loss, or a record cannot be read or encoded.
    """
    name = store_key(key, tokenizer, turns)
    folder = cache / name
    if store := _read(folder):
        return store
    with locked(cache / f".{name}.lock"):
        remove_leftovers(cache, of=name)  # left by killed processes, since running ones wait for the lock
        remove_leftovers(cache, older_than=DAY)
        store = _read(folder)  # another process may have written it since
        if store is None:
            if folder.exists():
                warnings.warn(
                    _("the cached tokens in {folder} are damaged, and are written again").format(folder=folder),
                    stacklevel=2,
                )
            with new_folder(folder, replace=True) as temporary:
                _write(temporary, records, tokenizer, turns, advance, Reading() if reading is None else reading)
            store = _read(folder)
    if store is None:
        raise TsugikiError(
            _("the tokens in {folder} cannot be read after writing; check the disk").format(folder=folder)
        )
    return store


def read_index(records: Iterable[Record]) -> RecordIndex:
    """Return the index of records without tokenising them."""
    builder = _IndexBuilder()
    for batch in batches(records):
        builder.add(batch)
    return builder.index()


class _IndexBuilder:
    """Collects the entries of an index."""

    def __init__(self) -> None:
        self.characters: list[int] = []
        self.digests = bytearray()
        self.signatures: list[Array] = []
        self.splittable: list[bool] = []
        self.sources: list[str] = []
        self.fields: list[Mapping[str, str]] = []

    def add(self, batch: Sequence[Record]) -> None:
        self.signatures.append(signatures([text_to_compare(record) for record in batch]))
        for record in batch:
            self.characters.append(len(record.text))
            self.digests += sha256_bytes(record.text.encode("utf-8", "surrogatepass"))[:DIGEST_BYTES]
            self.splittable.append(isinstance(record, Document))
            self.sources.append(record.source)
            self.fields.append(record.fields)

    def index(self) -> RecordIndex:
        return RecordIndex(
            characters=np.array(self.characters, np.int64),
            digests=np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, DIGEST_BYTES),
            signatures=np.concatenate(self.signatures),
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
    reading: Reading,
) -> None:
    from safetensors.numpy import save_file

    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    builder, lengths = _IndexBuilder(), [0]
    without_target: list[str] = []
    with (folder / "ids.bin").open("wb") as ids, (folder / "loss_mask.bin").open("wb") as loss_mask:
        for batch in batches(records):
            for record, encoded in zip(batch, encode_records(tokenizer, batch, turns), strict=True):
                if not encoded.target_tokens:
                    without_target.append(record.source)
                lengths.append(len(encoded.ids))
                ids.write(np.array(encoded.ids, dtype).tobytes())
                loss_mask.write(np.array([False, *encoded.loss_mask[1:]], np.bool_).tobytes())
            builder.add(batch)
            advance(len(batch))
    if without_target:
        raise TsugikiError(
            _("{without_target}: there is nothing to train on; remove the record, or add an answer").format(
                without_target=summarise_list(without_target)
            )
        )
    index = builder.index()
    with (folder / "records.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for source, fields in zip(index.sources, index.fields, strict=True):
            lines.write(json.dumps([source, dict(fields)], ensure_ascii=False) + "\n")
    save_file(
        {
            "offsets": np.cumsum(lengths, dtype=np.int64),
            "characters": index.characters,
            "digests": index.digests,
            "signatures": index.signatures,
            "splittable": index.splittable,
        },
        folder / "index.safetensors",
    )
    write_json(folder / _READING, reading.to_json())
    digests = {name: file_sha256(folder / name) for name in (*_FILES, _READING)}
    write_json(folder / "store.json", {"format": _FORMAT, "digests": digests})


def _read(folder: Path) -> TokenStore | None:
    """Open the store in a folder; return None if there is none, or if it is damaged."""
    from safetensors.numpy import load_file

    try:
        content = read_json(folder / "store.json")
    except TsugikiError:
        return None
    digests = content.get("digests")
    if (
        content.get("format") != _FORMAT
        or not isinstance(digests, dict)
        or not _FILES <= set(digests) <= _FILES | {_READING}
    ):
        return None
    if changed_files(folder, digests):
        return None
    tensors = load_file(folder / "index.safetensors")
    with (folder / "records.jsonl").open(encoding="utf-8") as lines:
        sources_and_fields = [json.loads(line) for line in lines]
    tokens, size = int(tensors["offsets"][-1]), (folder / "ids.bin").stat().st_size
    return TokenStore(
        index=RecordIndex(
            characters=tensors["characters"],
            digests=tensors["digests"],
            signatures=tensors["signatures"],
            splittable=tensors["splittable"],
            sources=[source for source, _ in sources_and_fields],
            fields=[fields for _, fields in sources_and_fields],
        ),
        ids=np.memmap(folder / "ids.bin", np.uint16 if size == 2 * tokens else np.int32, mode="r"),
        loss_mask=np.memmap(folder / "loss_mask.bin", np.bool_, mode="r"),
        offsets=tensors["offsets"],
        reading=Reading.from_json(read_json(folder / _READING) if _READING in digests else {}),
    )


def store_key(key: str, tokenizer: "PreTrainedTokenizerBase", turns: AssistantTurns) -> str:
    """Return 64 hexadecimal digits that identify the tokens of records; the arguments are those of `open_store`."""
    ends = repr((document_start(tokenizer), document_end(tokenizer)))
    described = f"{_FORMAT}\0{key}\0{turns}\0{tokenizer.chat_template}\0{_tokenizer_key(tokenizer)}{ends}"
    return sha256([described.encode("utf-8", "surrogatepass")]).removeprefix("sha256:")


def _tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a text that differs between tokenizers that encode texts differently."""
    name = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return f"{name}\0{backend.to_str()}"
    # The algorithm of a tokenizer in Python cannot be inspected, so its result for a fixed text is used.
    vocabulary = sorted(tokenizer.get_vocab().items(), key=itemgetter(1))
    probe = encode(tokenizer, [_PROBE, "".join(token for token, _ in vocabulary[:_PROBE_TOKENS])])
    kwargs = sorted(tokenizer.init_kwargs.items())
    settings = [(key, value) for key, value in kwargs if isinstance(value, str | int | float | None)]
    return f"{name}\0{vocabulary}\0{settings}\0{probe}"


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


def text_to_compare(record: Record) -> str:
    """Return the text by which near-duplicates are found, without system messages that many conversations share."""
    if isinstance(record, Conversation):
        return "\n".join(turn.content for turn in record.messages if turn.role not in ("system", "developer"))
    return record.text
