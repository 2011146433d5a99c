"""Read records from `.txt` files (one document each), from `.jsonl`, `.csv` and `.parquet` files (one record per row),
from a folder of these, or from a data set on the hub. The fields of a row are described in `schemas`.

Records are yielded one by one. A `.txt` file is read whole, other files row by row (`.parquet`: in batches of rows).
"""

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tsugiki.data.records import Document, Record
from tsugiki.data.schemas import KEYS, read_row, schema_of
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.digests import combined_digest, file_sha256, sha256

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")

_ENCODINGS = "UTF-8, UTF-16, EUC-JP or Shift_JIS"
_EXTRA = "pip install 'tsugiki[datasets]'"
_ROWS_AT_ONCE = 256

_NumberedRows: TypeAlias = Iterator[tuple[int, Mapping[str, Any]]]


def read_records(data: str | Path) -> Iterator[Record]:
    """Yield every record, sorted by file name, in the order of the rows.

    UTF-8, UTF-16 (with a byte order mark), EUC-JP and Shift_JIS are detected; line ends become LF. Documents that
    contain only white space are skipped.

    Args:
        data: a file or a folder; if it does not exist, the name of a data set on the hub: `owner/name`, or
            `owner/name:split` for a split other than train. No code from a data set is executed.

    Raises:
        TsugikiError: there is no such data or its file type is not supported. While reading: another encoding, a
            malformed line or row, different schemas in one file, or no record at all.
    """
    if _is_on_hub(data):
        return _refuse_empty(_records_of_rows(_dataset_rows(str(data)), str(data)), data)
    return _refuse_empty((record for file in _files(Path(data).expanduser()) for record in _read_file(file)), data)


def content_key(data: str | Path) -> str:
    """Return a digest that identifies what `read_records` would read.

    It covers the names and the bytes of files, or the fingerprint of a data set on the hub.

    Raises:
        TsugikiError: there is no such data, or it cannot be read.
    """
    if _is_on_hub(data):
        return sha256([f"{data}\0{_load_dataset(str(data))._fingerprint}".encode()])
    root = Path(data).expanduser()
    digests = {}
    for file in _files(root):
        try:
            digests[file.relative_to(root).as_posix() if root.is_dir() else file.name] = file_sha256(file)
        except OSError as error:
            raise _unreadable(file, error) from error
    return combined_digest(digests)


def decode(data: bytes, name: str) -> str:
    """Decode the bytes of a text file, and convert line ends to LF.

    The encodings are tried in turn with strict decoding: text in one of them is almost never valid in an earlier one.

    Raises:
        TsugikiError: the text is in none of these encodings: UTF-8, UTF-16, EUC-JP, Shift_JIS.
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
            raise TsugikiError(f"{root} contains no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
        return files
    if not root.is_file():
        raise TsugikiError(
            f"no data at {root}: there is no such file or folder (data sets on the hub are written owner/name)"
        )
    if root.suffix.lower() not in SUFFIXES:
        kind = root.suffix or "a file without a suffix"
        raise TsugikiError(f"{root}: {kind} is not supported; use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return [root]


def _read_file(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], _NumberedRows]] = {
        ".jsonl": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    try:
        if path.suffix.lower() == ".txt":
            text = decode(path.read_bytes(), str(path))
            if text.strip():
                yield Document(text, str(path))
        else:
            yield from _records_of_rows(readers[path.suffix.lower()](path), str(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _json_rows(path: Path) -> _NumberedRows:
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{error.msg} at character {error.pos + 1}"
                raise TsugikiError(f"{path}:{number} is not JSON: {what}; correct or remove the line") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too many brackets
                raise TsugikiError(f"{path}:{number} cannot be read: {error}; remove the line") from error
            if not isinstance(row, dict):
                raise TsugikiError(f'{path}:{number} is not a JSON object; write each line as {{"text": "…"}}')
            yield number, row


def _csv_rows(path: Path) -> _NumberedRows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may contain a whole book; the default limit is 128 KiB
    with path.open(encoding=_encoding(path)) as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1  # the first line of this row; cells may span several lines
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise TsugikiError(
                    f"{path}:{number} is not a CSV row: {error}; put cells that contain commas, quotes or line ends in "
                    "double quotes, and double the quotes inside"
                ) from error
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, f"{path}:{number}")
                continue
            if len(cells) != len(header):
                raise TsugikiError(
                    f"{path}:{number} has {len(cells)} cells, but the first line names {len(header)} columns; "
                    "put cells that contain commas or line ends in double quotes"
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
            "the first line must name the columns, separated by commas"
        )
    return names


def _parquet_rows(path: Path) -> _NumberedRows:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TsugikiError(f"{path}: reading .parquet requires pyarrow: {_EXTRA}") from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = [
                column.name
                for column in file.schema_arrow
                if column.name in _KNOWN or column.type in (arrow.string(), arrow.large_string())
            ]
            if not columns:
                raise TsugikiError(
                    f"{path} has none of the columns {', '.join(reversed(KEYS))}; "
                    f"it has {', '.join(file.schema_arrow.names[:8]) or 'nothing'}; rename its columns"
                )
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise TsugikiError(f"{path} cannot be read as Parquet: {_error_line(error)}; export the file again") from error


_KNOWN = frozenset(key for keys in KEYS.values() for key in keys) | {"input", "system", "history", "tools"}


def _records_of_rows(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str) -> Iterator[Record]:
    """Yield the records of one file, and check that all rows have the same schema."""
    expected: str | None = None
    first = 0
    for number, row in rows:
        where = f"{name}:{number}"
        schema = schema_of(row, where)
        if expected is None:
            expected, first = schema, number
        if schema != expected:
            raise TsugikiError(f"{where} has {schema}, but line {first} has {expected}; put them in separate files")
        record = read_row(row, where)
        if record is not None:
            yield record


def _refuse_empty(records: Iterator[Record], data: str | Path) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise TsugikiError(f"{data} is empty: there is no text to train on")


def _unreadable(path: Path, error: OSError) -> TsugikiError:
    return TsugikiError(f"{path} cannot be read: {error.strerror or error}")


# Encodings -----------------------------------------------------------------------------------------------


def _candidates(head: bytes) -> tuple[str, ...]:
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return ("utf-16",) if marked else ("utf-8-sig", "euc_jp", "cp932")


def _encoding(path: Path) -> str:
    """Detect the encoding of a file as `decode` does, with only one line in memory at a time."""
    with path.open("rb") as file:
        candidates = _candidates(file.read(2))
    first_invalid = None
    for encoding in candidates:
        invalid = _invalid_line(path, encoding)
        if invalid is None:
            return encoding
        first_invalid = first_invalid or invalid
    raise TsugikiError(f"{path}:{first_invalid} is not text in {_ENCODINGS}; convert the file to UTF-8")


def _invalid_line(path: Path, encoding: str) -> int | None:
    """Return the number of the first line that is not valid in an encoding, or None."""
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
    """Whether data must be the name of a data set on the hub: it does not exist here and is written `owner/name`.

    A single word is never looked up. It is more likely a misspelt folder, and for some words (csv, json, text)
    `datasets` would read all such files of the working directory.
    """
    if isinstance(data, Path) or "\\" in data or Path(data).expanduser().exists():
        return False
    name = data.partition(":")[0]
    parts = name.split("/")
    is_name = len(parts) == 2 and all(part[:1].isalnum() for part in parts)
    return is_name and Path(name).suffix.lower() not in SUFFIXES


def _dataset_rows(data: str) -> _NumberedRows:
    dataset = _load_dataset(data)
    columns = [
        name for name, kind in dataset.features.items() if name in _KNOWN or getattr(kind, "dtype", "") == "string"
    ]
    if not columns:
        names = ", ".join(dataset.features)
        raise TsugikiError(
            f"{data} has none of the columns {', '.join(reversed(KEYS))}; it has {names}; choose another data set"
        )
    return enumerate(dataset.select_columns(columns), 1)  # other columns, such as images, are not decoded


def _load_dataset(data: str) -> Any:
    """Load a split of a data set from the hub; `datasets` caches it and, since version 4, executes no code from it."""
    name, _, split = data.partition(":")
    missing = f"there is no file or folder {name}"
    try:
        import datasets
    except ImportError as error:
        raise TsugikiError(f"{missing}; to read a data set of that name from the hub: {_EXTRA}") from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TsugikiError(f"{missing}, and no data set of that name on the hub; check the spelling") from error
    except ConnectionError as error:
        raise TsugikiError(f"{missing}, and the hub cannot be reached to look for a data set of that name") from error
    except Exception as error:  # an unknown split, several configurations, a damaged file
        what = _error_line(error.__cause__ or error)
        raise TsugikiError(f"the data set {data} cannot be read: {what}; choose another split or data set") from error


def _error_line(error: BaseException) -> str:
    return error_text(error).rstrip(".;")
