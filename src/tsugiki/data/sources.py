"""Read records from `.txt` files (one document each), from `.jsonl`, `.csv` and `.parquet` files (one record per row),
from a folder of these, or from a data set on the hub. The fields of a row are described in `schemas`.

Records are yielded one by one. A `.txt` file is read whole, other files row by row (`.parquet`: in batches of rows).
"""

import codecs
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tsugiki.data.records import Document, Record
from tsugiki.data.schemas import KEYS, read_row, schema_of
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.digests import combined_digest, file_sha256, sha256
from tsugiki.io.json import parse_json
from tsugiki.language import _, marked

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")

_ENCODINGS = marked("UTF-8, UTF-16, EUC-JP or Shift_JIS")
_EXTRA = "pip install 'tsugiki[datasets]'"
# Limits for Parquet, which packs repeated values to almost nothing.
_MAX_RATIO, _MIN_UNPACKED = 100, 10_000_000  # bytes in memory for each byte of the file, and for any file
_MIN_VALUE, _MIN_VALUES = 2, 100_000  # bytes of the file for each value of a column, and values of any file
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 1 << 26

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
    return _refuse_empty((record for file in _files(_local_path(data)) for record in _read_file(file)), data)


def check_data(data: str | Path) -> None:
    """Check that there is such data, in files of a known type. Nothing is read, and the hub is not asked.

    Raises:
        TsugikiError: there is no such file or folder, or its type is not supported.
    """
    if not _is_on_hub(data):
        _files(_local_path(data))


def record_kinds(data: str | Path) -> set[type[Record]]:
    """Return the kinds of the records, by the first one of each file.

    Raises:
        TsugikiError: as for `read_records`.
    """
    if _is_on_hub(data):
        return {type(record) for record in islice(read_records(data), 1)}
    return {type(record) for file in _files(_local_path(data)) for record in islice(_read_file(file), 1)}


def content_key(data: str | Path) -> str:
    """Return a digest that identifies what `read_records` would read.

    It covers the names and the bytes of files, or the fingerprint of a data set on the hub.

    Raises:
        TsugikiError: there is no such data, or it cannot be read.
    """
    if _is_on_hub(data):
        return sha256([f"{data}\0{_load_dataset(str(data))._fingerprint}".encode()])
    root = _local_path(data)
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
        if encoding == "euc_jp" and _is_half_width([data]):
            continue
        if "\0" in text:
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise TsugikiError(
        _("{name} is not text in {encodings}; convert it to UTF-8").format(name=name, encodings=_(_ENCODINGS))
    )


def _local_path(data: str | Path) -> Path:
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a home folder that does not exist
        raise TsugikiError(
            _("no data at {data}: {error}").format(data=error_text(data, 100), error=error_text(error, 100))
        ) from error
    return path


# Files ---------------------------------------------------------------------------------------------------


def _files(root: Path) -> list[Path]:
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise TsugikiError(
                _("{root} contains no {suffixes} or {last} file").format(
                    root=root, suffixes=", ".join(SUFFIXES[:-1]), last=SUFFIXES[-1]
                )
            )
        return files
    if not root.is_file():
        raise TsugikiError(
            _(
                "no data at {root}: there is no such file or folder (data sets on the hub are written owner/name)"
            ).format(root=root)
        )
    if root.suffix.lower() not in SUFFIXES:
        kind = root.suffix or _("a file without a suffix")
        raise TsugikiError(
            _("{root}: {kind} is not supported; use {suffixes} or {last}").format(
                root=root, kind=kind, suffixes=", ".join(SUFFIXES[:-1]), last=SUFFIXES[-1]
            )
        )
    return [root]


def _read_file(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], _NumberedRows]] = {
        ".jsonl": json_rows,
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


def json_rows(path: Path) -> _NumberedRows:
    """Yield the number of each line of a `.jsonl` file that is not blank, and its object.

    Raises:
        TsugikiError: while reading, a line is not a JSON object, or the text has another encoding than those above.
    """
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except json.JSONDecodeError as error:
                what = _("{error} at character {position}").format(error=error.msg, position=error.pos + 1)
                raise TsugikiError(
                    _("{path}:{number} is not JSON: {what}; correct or remove the line").format(
                        path=path, number=number, what=what
                    )
                ) from error
            except ValueError as error:  # a number of many digits, or too many brackets
                raise TsugikiError(
                    _("{path}:{number} cannot be read: {error}; remove the line").format(
                        path=path, number=number, error=error
                    )
                ) from error
            if not isinstance(row, dict):
                raise TsugikiError(
                    _('{path}:{number} is not a JSON object; write each line as {{"text": "…"}}').format(
                        path=path, number=number
                    )
                )
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
                    _(
                        "{path}:{number} is not a CSV row: {error}; put cells that contain commas, quotes or line ends "
                        "in double quotes, and double the quotes inside"
                    ).format(path=path, number=number, error=error)
                ) from error
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, f"{path}:{number}")
                continue
            if len(cells) != len(header):
                raise TsugikiError(
                    _(
                        "{path}:{number} has {count} cells, but the first line names {columns} columns; put cells that "
                        "contain commas or line ends in double quotes"
                    ).format(path=path, number=number, count=len(cells), columns=len(header))
                )
            yield number, dict(zip(header, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise TsugikiError(
            _("{where} names the column {name} twice; rename one of them").format(
                where=where, name=error_text(repr(name), 100)
            )
        )
    if not any(set(names).issuperset(keys) for keys in KEYS.values()):
        raise TsugikiError(
            _(
                "{where} names none of the columns {reversed}; the first line must name the columns, separated by "
                "commas"
            ).format(where=where, reversed=", ".join(reversed(KEYS)))
        )
    return names


def _parquet_rows(path: Path) -> _NumberedRows:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TsugikiError(
            _("{path}: reading .parquet requires pyarrow: {extra}").format(path=path, extra=_EXTRA)
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = [
                column.name
                for column in file.schema_arrow
                if column.name in _KNOWN or column.type in (arrow.string(), arrow.large_string())
            ]
            if not columns:
                raise TsugikiError(
                    _("{path} has none of the columns {reversed}; it has {names}; rename its columns").format(
                        path=path,
                        reversed=", ".join(reversed(KEYS)),
                        names=summarise_list(file.schema_arrow.names) or "nothing",
                    )
                )
            size = path.stat().st_size
            limit = _MIN_UNPACKED + _MAX_RATIO * size
            largest, total, values = _unpacked_sizes(file.metadata, columns)
            too_large = _(
                "{path} unpacks to more than {ratio} times its size, which no text does; use another file"
            ).format(path=path, ratio=_MAX_RATIO)
            if total > limit or values > _MIN_VALUES + size // _MIN_VALUE:
                raise TsugikiError(too_large)
            # A value can be repeated by a reference to a dictionary, so each row can have the largest size.
            batch_size = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(largest, 1)))
            numbers, unpacked = count(1), 0
            for batch in file.iter_batches(batch_size, columns=columns):
                for row, number in zip(batch.to_pylist(), numbers, strict=False):
                    unpacked += _characters(row)
                    if unpacked > limit:
                        raise TsugikiError(too_large)
                    yield number, row
    except (arrow.ArrowException, ValueError, TypeError, OverflowError) as error:  # also dates that Python cannot hold
        raise TsugikiError(
            _("{path} cannot be read as Parquet: {error_line}; export the file again").format(
                path=path, error_line=_error_line(error)
            )
        ) from error


def _unpacked_sizes(metadata: "FileMetaData", columns: Collection[str]) -> tuple[int, int, int]:
    """Measure these columns, by the file's own description.

    Returns:
        The bytes of the largest one in a row group, the bytes of all, and the largest number of values in one.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
    sizes, values = [0], Counter[str]()
    for chunk in chunks:
        if chunk.path_in_schema.split(".")[0] in columns:
            sizes.append(chunk.total_uncompressed_size)
            values[chunk.path_in_schema] += chunk.num_values
    return max(sizes), sum(sizes), max(values.values(), default=0)


def _characters(value: object) -> int:
    """Count the characters of all texts in a value as JSON represents it."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, inner))


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
            raise TsugikiError(
                _("{where} has {schema}, but line {first} has {expected}; put them in separate files").format(
                    where=where, schema=schema, first=first, expected=expected
                )
            )
        record = read_row(row, where)
        if record is not None:
            yield record


def _refuse_empty(records: Iterator[Record], data: str | Path) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise TsugikiError(_("{data} is empty: there is no text to train on").format(data=data))


def _unreadable(path: Path, error: OSError) -> TsugikiError:
    return TsugikiError(
        _("{path} cannot be read: {strerror}").format(path=path, strerror=error.strerror or error_text(error))
    )


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
        if invalid is None and encoding == "euc_jp":
            with path.open("rb") as file:
                encoding = "cp932" if _is_half_width(file) else encoding
        if invalid is None:
            return encoding
        first_invalid = first_invalid or invalid
    raise TsugikiError(
        _("{path}:{first_invalid} is not text in {encodings}; convert the file to UTF-8").format(
            path=path, first_invalid=first_invalid, encodings=_(_ENCODINGS)
        )
    )


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


_ASCII, _HALF_WIDTH_BYTES = bytes(range(0x80)), bytes(range(0xA1, 0xE0))
_MIN_LETTERS = 6  # three kanji; shorter texts are taken for EUC-JP
_COMMON = re.compile("[ぁ-ヶー、。・「」]")
_ODD_HALF_WIDTH = re.compile("(?<![ｳｶ-ﾄﾊ-ﾎ])ﾞ|(?<![ﾊ-ﾎ])ﾟ|(?<![ｱ-ﾟ])[ｰｧ-ｯ]")


def _is_half_width(lines: Iterable[bytes]) -> bool:
    """Whether a text that is valid EUC-JP is more likely half-width katakana in Shift_JIS.

    Then each of its bytes is one, the pairs of bytes are hardly ever kana or punctuation in EUC-JP, and voicing marks
    and small letters follow a letter that can have them.
    """
    letters = common = odd = 0
    for line in lines:
        high = line.translate(None, _ASCII)
        if high.translate(None, _HALF_WIDTH_BYTES):
            return False
        letters += len(high)
        common += 2 * len(_COMMON.findall(line.decode("euc_jp")))
        odd += len(_ODD_HALF_WIDTH.findall(line.decode("cp932")))
    return letters >= _MIN_LETTERS and 4 * common < letters and 20 * odd < letters


# The hub -------------------------------------------------------------------------------------------------


def _is_on_hub(data: str | Path) -> bool:
    """Whether data must be the name of a data set on the hub: it does not exist here and is written `owner/name`.

    A single word is never looked up. It is more likely a misspelt folder, and for some words (csv, json, text)
    `datasets` would read all such files of the working directory.
    """
    if isinstance(data, Path) or "\\" in data or _local_path(data).exists():
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
        names = summarise_list(list(dataset.features))
        raise TsugikiError(
            _("{data} has none of the columns {reversed}; it has {names}; choose another data set").format(
                data=data, reversed=", ".join(reversed(KEYS)), names=names
            )
        )
    return enumerate(dataset.select_columns(columns), 1)  # other columns, such as images, are not decoded


def _load_dataset(data: str) -> Any:
    """Load a split of a data set from the hub; `datasets` caches it and, since version 4, executes no code from it."""
    name, _colon, split = data.partition(":")
    missing = _("there is no file or folder {name}").format(name=name)
    try:
        import datasets
    except ImportError as error:
        raise TsugikiError(
            _("{missing}; to read a data set of that name from the hub: {extra}").format(missing=missing, extra=_EXTRA)
        ) from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TsugikiError(
            _("{missing}, and no data set of that name on the hub; check the spelling").format(missing=missing)
        ) from error
    except ConnectionError as error:
        raise TsugikiError(
            _("{missing}, and the hub cannot be reached to look for a data set of that name").format(missing=missing)
        ) from error
    except Exception as error:  # an unknown split, several configurations, a damaged file
        what = _error_line(error.__cause__ or error)
        raise TsugikiError(
            _("the data set {data} cannot be read: {what}; choose another split or data set").format(
                data=data, what=what
            )
        ) from error


def _error_line(error: BaseException) -> str:
    return error_text(error).rstrip(".;")
