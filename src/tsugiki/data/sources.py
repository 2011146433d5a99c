"""Records from files: `.txt` (one document each), `.jsonl`, `.csv` and `.parquet` (one record a row), a folder of
these, or a data set on the hub by its name. Which fields a row has is in `schemas`.

Files are read as they are needed: of a `.txt` one whole file, of the others one row (`.parquet`: a row group).
"""

import codecs
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tsugiki.data.records import Document, Record
from tsugiki.data.schemas import KEYS, read_row, schema_of
from tsugiki.errors import TsugikiError

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")

_ENCODINGS = "UTF-8, UTF-16, EUC-JP or Shift_JIS"
_EXTRA = "pip install 'tsugiki[datasets]'"
_ROWS_AT_ONCE = 256

_Rows: TypeAlias = Iterator[tuple[int, Mapping[str, Any]]]


def read_records(data: str | Path) -> Iterator[Record]:
    """Every record, in the order of files' names and of rows.

    UTF-8, UTF-16 (with its mark), EUC-JP and Shift_JIS are told apart; line ends become LF. Documents of white space
    alone are left out.

    Args:
        data: a file, a folder, or, where there is neither, the name of a data set on the hub: `owner/name`, or
            `owner/name:split` for another split than train. No code from a data set runs.

    Raises:
        TsugikiError: no such data, a kind that is not read, or (while reading) an encoding that is none of these, a
            broken line or row, two kinds of rows in one file, or nothing to read at all.
    """
    if _is_on_hub(data):
        return _refuse_nothing(_records_of_rows(_dataset_rows(str(data)), str(data)), data)
    return _refuse_nothing((record for file in _files(Path(data).expanduser()) for record in _read_file(file)), data)


def content_key(data: str | Path) -> str:
    """64 hexadecimal digits of SHA-256 over what `read_records` would read: names and bytes of files, or the
    fingerprint of a data set on the hub.

    Raises:
        TsugikiError: no such data, or it cannot be read.
    """
    digest = hashlib.sha256()
    if _is_on_hub(data):
        digest.update(f"{data}\0{_load_dataset(str(data))._fingerprint}".encode())
        return digest.hexdigest()
    root = Path(data).expanduser()
    for file in _files(root):
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise _unreadable(file, error) from error
    return digest.hexdigest()


def decode(data: bytes, name: str) -> str:
    """The text of a file's bytes, with LF line ends; `name` is for the error.

    Strict decoding tells the encodings apart: text in one of these is practically never valid in those
    tried before it.

    Raises:
        TsugikiError: it is none of UTF-8, UTF-16, EUC-JP and Shift_JIS.
    """
    for encoding in _candidates(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise TsugikiError(f"{name} is not text in {_ENCODINGS}; convert it to UTF-8")


# Files ---------------------------------------------------------------------------------------------------


def _files(root: Path) -> list[Path]:
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise TsugikiError(f"{root} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
        return files
    if not root.is_file():
        raise TsugikiError(
            f"no data at {root}: there is no such file or folder (a data set on the hub is named like owner/name)"
        )
    if root.suffix.lower() not in SUFFIXES:
        kind = root.suffix or "a file without an ending"
        raise TsugikiError(f"{root}: {kind} is not read; use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return [root]


def _read_file(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], _Rows]] = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        if path.suffix.lower() == ".txt":
            text = decode(path.read_bytes(), str(path))
            if text.strip():
                yield Document(text, str(path))
        else:
            yield from _records_of_rows(readers[path.suffix.lower()](path), str(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _json_rows(path: Path) -> _Rows:
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{error.msg} at character {error.pos + 1}"
                raise TsugikiError(f"{path}:{number} is not JSON: {what}; mend the line or take it out") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
                raise TsugikiError(f"{path}:{number} cannot be read: {error}; take the line out") from error
            if not isinstance(row, dict):
                raise TsugikiError(f'{path}:{number} is no object; each line is one, like {{"text": "…"}}')
            yield number, row


def _csv_rows(path: Path) -> _Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may hold a book; the default is 128 KiB
    number = 1
    with path.open(encoding=_encoding(path)) as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1  # of the row's first line; cells may hold several
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise TsugikiError(
                    f"{path}:{number} is no CSV row: {error}; put cells that hold commas, quotes or line ends in "
                    'double quotes, and write a quote within as ""'
                ) from error
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, f"{path}:{number}")
                continue
            if len(cells) != len(header):
                raise TsugikiError(
                    f"{path}:{number} has {len(cells)} cells where the first line names {len(header)} columns; "
                    "put cells that hold commas or line ends in double quotes"
                )
            yield number, dict(zip(header, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise TsugikiError(f"{where} names the column {name!r} twice; rename one of them")
    if not any(set(names).issuperset(keys) for keys in KEYS.values()):
        raise TsugikiError(
            f"{where} names none of the columns {', '.join(reversed(KEYS))}; "
            "the first line must name the columns, with commas between them"
        )
    return names


def _parquet_rows(path: Path) -> _Rows:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TsugikiError(f"{path}: reading .parquet needs pyarrow; {_EXTRA}") from error
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [
                column.name
                for column in file.schema_arrow
                if column.name in _KNOWN
                or arrow.types.is_string(column.type)
                or arrow.types.is_large_string(column.type)
            ]
            if not wanted:
                raise TsugikiError(
                    f"{path} has none of the columns {', '.join(reversed(KEYS))}, "
                    f"but {', '.join(file.schema_arrow.names[:8]) or 'nothing'}; rename its columns to one of these"
                )
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise TsugikiError(f"{path} cannot be read as Parquet: {_first_line(error)}; write it anew") from error


_KNOWN = frozenset(key for keys in KEYS.values() for key in keys) | {"input", "system", "history", "tools"}


def _records_of_rows(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str) -> Iterator[Record]:
    """Records of one file, all of one kind."""
    kind: str | None = None
    first = 0
    for number, row in rows:
        where = f"{name}:{number}"
        schema = schema_of(row, where)
        if kind is None:
            kind, first = schema, number
        if schema != kind:
            raise TsugikiError(f"{where} has {schema} where line {first} has {kind}; keep one kind to a file")
        record = read_row(row, where)
        if record is not None:
            yield record


def _refuse_nothing(records: Iterator[Record], data: str | Path) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise TsugikiError(f"{data} is empty: there is no text to learn from")


def _unreadable(path: Path, error: OSError) -> TsugikiError:
    return TsugikiError(f"{path} cannot be read: {error.strerror or error}")


# Encodings -----------------------------------------------------------------------------------------------


def _candidates(head: bytes) -> tuple[str, ...]:
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return ("utf-16",) if marked else ("utf-8-sig", "euc_jp", "cp932")


def _encoding(path: Path) -> str:
    """The encoding of a file of lines, told apart as in `decode`, one line in memory at a time."""
    with path.open("rb") as file:
        candidates = _candidates(file.read(2))
    first_bad = None
    for encoding in candidates:
        bad = _bad_line(path, encoding)
        if bad is None:
            return encoding
        first_bad = first_bad or bad
    raise TsugikiError(f"{path}:{first_bad} is not text in {_ENCODINGS}; convert the file to UTF-8")


def _bad_line(path: Path, encoding: str) -> int | None:
    """The first line that is no text in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 1
    with path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if "\0" in decoder.decode(line):
                    return number
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return number
    return None


# The hub -------------------------------------------------------------------------------------------------


def _is_on_hub(data: str | Path) -> bool:
    """Whether data can only be the name of a data set: no path, and spelt `owner/name`.

    A single word is never looked up: it is a folder spelt wrong, and by some (csv, json, text) `datasets` would take
    all such files in the working directory.
    """
    if isinstance(data, Path) or "\\" in data or Path(data).expanduser().exists():
        return False
    name = data.partition(":")[0]
    parts = name.split("/")
    spelt = len(parts) == 2 and all(part[:1].isalnum() for part in parts)
    return spelt and Path(name).suffix.lower() not in SUFFIXES


def _dataset_rows(data: str) -> _Rows:
    dataset = _load_dataset(data)
    wanted = [
        name for name, kind in dataset.features.items() if name in _KNOWN or getattr(kind, "dtype", "") == "string"
    ]
    if not wanted:
        names = ", ".join(dataset.features)
        raise TsugikiError(f"{data} has none of the columns {', '.join(reversed(KEYS))}, but {names}; choose another")
    return enumerate(dataset.select_columns(wanted), 1)  # pictures and the like are not even decoded


def _load_dataset(data: str) -> Any:
    """A split of a data set on the hub, kept on disk by `datasets`, which from version 4 on runs no code of it."""
    name, _, split = data.partition(":")
    missing = f"there is no file or folder {name}"
    try:
        import datasets
    except ImportError as error:
        raise TsugikiError(f"{missing}; to read a data set of that name from the hub, {_EXTRA}") from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TsugikiError(f"{missing}, and no data set of that name on the hub; check the spelling") from error
    except ConnectionError as error:
        raise TsugikiError(f"{missing}, and the hub cannot be reached to look for a data set of that name") from error
    except Exception as error:  # an unknown split, several configurations, whatever a file of any kind may hold
        what = _first_line(error.__cause__ or error)
        raise TsugikiError(f"the data set {data} cannot be read: {what}; choose another split or data set") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".;")
