"""Read the rows of a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, or of a data set on the hub, one by one."""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from tsugiki.data.read.character_encoding import decode_as, open_text
from tsugiki.data.read.schemas import NotDataError, Wanted, known_columns, known_fields, names_of, ready_columns
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.formatting import format_size
from tsugiki.io.json import DECODER, check_depth, in_words, parse_json
from tsugiki.language import _

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

# Limits for Parquet, which packs repeated values to almost nothing.
_MAX_RATIO, _MIN_UNPACKED = 100, 10_000_000  # bytes in memory for each byte of the file, and for any file
_MIN_VALUE, _MIN_VALUES = 2, 100_000  # bytes of the file for each value of a column, and values of any file
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 1 << 26

_MAX_JSON = 500_000_000  # bytes; the values of such a file take two to five times as much memory
_DELIMITERS = ",;\t|"  # of a .csv file
_NOT_SPACE = re.compile("[^ \t\r\n]")

EXTRA = "pip install 'tsugiki[datasets]'"
_BESIDE = frozenset({"prompt", "input", "system", "history", "tools"})
"""Columns that are read regardless of their type, as those of the schemas are."""

NumberedRows: TypeAlias = Iterator[tuple[int, Mapping[str, Any]]]
NumberedCells: TypeAlias = Iterator[tuple[int, list[str]]]
OpenFile: TypeAlias = Callable[[], BinaryIO]


def opener(path: Path) -> OpenFile:
    """Return a function that opens a file."""
    return lambda: path.open("rb")


def jsonl_rows(open_file: OpenFile, name: str, encoding: str) -> NumberedRows:
    """Yield the number of each line of a `.jsonl` file that is not blank, and its object."""
    with open_text(open_file(), encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.rstrip("\n"))
            except ValueError as error:
                raise TsugikiError(
                    "{path}:{number} cannot be read as JSON: {error}; correct or remove the line",
                    path=name,
                    number=number,
                    error=error,
                ) from error
            if not isinstance(row, dict):
                raise TsugikiError(
                    '{path}:{number} is not a JSON object; write each line as {{"text": "…"}}', path=name, number=number
                )
            yield number, row


def json_rows(open_file: OpenFile, name: str, encoding: str) -> NumberedRows:
    """Yield the number and the object of each element of a JSON array, or of each of several JSON objects.

    A file is read whole, because Python's JSON has no other way; `.jsonl` files are read line by line.
    """
    with open_file() as file:
        data = file.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise TsugikiError(
            "{name} has more than {size}, and a .json file is read whole; make it a .jsonl file",
            name=name,
            size=format_size(_MAX_JSON),
        )
    text = decode_as(data, encoding)
    del data
    try:
        for number, value in enumerate(_json_values(text), 1):
            if not isinstance(value, dict):
                raise NotDataError(
                    '{name}: element {number} is not a JSON object; write each one as {{"text": "…"}}',
                    name=name,
                    number=number,
                )
            yield number, value
    except ValueError as error:
        raise TsugikiError(
            "{name} is not JSON: {reason}; correct the file", name=name, reason=error_text(error, 100)
        ) from error


def _json_values(text: str) -> Iterator[Any]:
    """Yield the elements of JSON arrays, and other JSON values, that follow each other."""
    place = _NOT_SPACE.search(text)
    while place:
        try:
            value, end = DECODER.raw_decode(text, place.start())
        except json.JSONDecodeError as error:
            raise in_words(error) from error
        except RecursionError as error:
            raise ValueError(_("it is nested too deeply")) from error
        check_depth(value)
        yield from value if isinstance(value, list) else [value]
        place = _NOT_SPACE.search(text, end)


def csv_rows(
    open_file: OpenFile, name: str, encoding: str, wanted: Wanted, delimiter: str | None = None
) -> NumberedRows:
    """Yield the number of the first line of each row of a `.csv` file, and its cells by the names of the columns.

    For the columns, see `rows_of_cells`. The delimiter is by default what is most frequent in the first
    line: a comma, a semicolon or a tab, as spreadsheets write, or a vertical bar.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may contain a whole book; the default limit is 128 KiB
    with open_text(open_file(), encoding) as file:
        if delimiter is None:
            first = next((line for line in file if line.strip()), "")
            delimiter = max(_DELIMITERS, key=first.count)
            file.seek(0)
        yield from rows_of_cells(_csv_cells(csv.reader(file, delimiter=delimiter, strict=True), name), name, wanted)


def _csv_cells(reader: Any, name: str) -> NumberedCells:
    """Yield the number of the first line of each row, whose cells may span several lines, and its cells."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TsugikiError(
                "{path}:{number} is not a CSV row: {error}; put cells that contain commas, quotes or line ends "
                "in double quotes, and double the quotes inside",
                path=name,
                number=number,
                error=error,
            ) from error
        yield number, cells


def rows_of_cells(numbered: NumberedCells, name: str, wanted: Wanted) -> NumberedRows:
    """Yield the number of each row that is not blank, and its cells by the names in the first one.

    The columns must have one of the wanted schemas.
    """
    header: list[str] | None = None
    for number, cells in numbered:
        if not any(cells):
            continue
        if header is None:
            header = _header(cells, f"{name}:{number}")
            if known_columns(header, wanted) is None:
                raise _unknown_columns(header, numbered, f"{name}:{number}", wanted)
            continue
        if len(cells) != len(header):
            raise TsugikiError(
                "{path}:{number} has {count} cells, but the first line names {columns} columns; put cells that "
                "contain commas or line ends in double quotes",
                path=name,
                number=number,
                count=len(cells),
                columns=len(header),
            )
        yield number, dict(zip(header, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise TsugikiError(
            "{where} names the column {name} twice; rename one of them", where=where, name=error_text(repr(name), 100)
        )
    return names


def _unknown_columns(header: list[str], rows: NumberedCells, where: str, wanted: Wanted) -> NotDataError:
    """Return the error for a table without known columns; its first row tells which ones have texts."""
    cells = header
    with suppress(TsugikiError):
        _number, cells = next(rows, (0, header))
    row = dict(zip(header, cells, strict=False))
    message = _(
        "{where} names none of the columns {known}, but {names}; the first line must name the columns, separated by "
        "commas; other names are given as {columns}"
    )
    known, names = known_fields(wanted.keys), names_of(header)
    return NotDataError(message.format(where=where, known=known, names=names, columns=ready_columns(row, wanted.keys)))


def parquet_rows(path: Path, wanted: Wanted) -> NumberedRows:
    """Yield the row number and the values of each row of a `.parquet` file; for `wanted`, see `csv_rows`."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TsugikiError("{path}: reading .parquet requires pyarrow: {extra}", path=path, extra=EXTRA) from error
    try:
        with parquet.ParquetFile(path) as file:
            texts = (arrow.string(), arrow.large_string())
            kinds = {column.name: column.type in texts for column in file.schema_arrow}
            names = _columns_to_read(str(path), kinds, wanted)
            size = path.stat().st_size
            limit = _MIN_UNPACKED + _MAX_RATIO * size
            largest, total, values = _unpacked_sizes(file.metadata, names)
            too_large = _(
                "{path} unpacks to more than {ratio} times its size, which no text does; use another file",
                path=path,
                ratio=_MAX_RATIO,
            )
            if total > limit or values > _MIN_VALUES + size // _MIN_VALUE:
                raise TsugikiError(too_large)
            # A value can be repeated by a reference to a dictionary, so each row can have the largest size.
            batch_size = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(largest, 1)))
            numbers, unpacked = count(1), 0
            for batch in file.iter_batches(batch_size, columns=names):
                for row, number in zip(batch.to_pylist(), numbers, strict=False):
                    unpacked += _characters(row)
                    if unpacked > limit:
                        raise TsugikiError(too_large)
                    yield number, row
    except (arrow.ArrowException, ValueError, TypeError, OverflowError) as error:  # Python cannot hold some dates
        raise TsugikiError(
            "{path} cannot be read as Parquet: {error_line}; export the file again",
            path=path,
            error_line=error_text(error).rstrip(".;"),
        ) from error


def _columns_to_read(source: str, kinds: Mapping[str, bool], wanted: Wanted) -> list[str]:
    """Return the columns of texts, and those of the schemas. `kinds` is column -> whether it has texts."""
    known = _BESIDE.union(*wanted.keys.values(), wanted.columns.values())
    names = [name for name, is_text in kinds.items() if is_text or name in known]
    if not names:
        raise NotDataError(
            "{path} has none of the columns {known}; it has {names}; give its names as {flag:columns text=NAME}",
            path=source,
            known=known_fields(wanted.keys),
            names=summarise_list([*kinds]) or _("nothing"),
        )
    return names


def _unpacked_sizes(metadata: "FileMetaData", columns: Collection[str]) -> tuple[int, int, int]:
    """Return the unpacked sizes of these columns, from the file's metadata: the bytes of the largest column of a row
    group, the bytes of all columns, and the largest number of values in a column.
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
    """Return the number of characters of all strings in a JSON value."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, inner))


# Data sets on the hub, read with `datasets` -----------------------------------------------------------------


def is_dataset_name(data: str) -> bool:
    """Return whether a text that names no local file has the form of a data set's name on the hub.

    The forms are `owner/name` and `owner/name:split`. A single word is never looked up. It is more likely a misspelt
    folder, and for some words (csv, json, text) `datasets` would read all such files of the working directory.
    """
    parts = data.partition(":")[0].split("/")
    return "\\" not in data and len(parts) == 2 and all(part[:1].isalnum() for part in parts)


def dataset_fingerprint(data: str) -> str:
    """Return the fingerprint that `datasets` computes of a data set's content."""
    return str(_load_dataset(data)._fingerprint)


def dataset_rows(data: str, wanted: Wanted) -> NumberedRows:
    """Return the row number and the values of each row of a data set; for `wanted`, see `csv_rows`."""
    dataset = _load_dataset(data)
    kinds = {name: getattr(kind, "dtype", "") == "string" for name, kind in dataset.features.items()}
    names = _columns_to_read(data, kinds, wanted)
    return enumerate(dataset.select_columns(names), 1)  # other columns, such as images, are not decoded


def _load_dataset(data: str) -> Any:
    """Load a split of a data set from the hub; `datasets` caches it and, since version 4, executes no code from it."""
    name, _colon, split = data.partition(":")
    missing = _("there is no file or folder {name}", name=name)
    try:
        import datasets
    except ImportError as error:
        raise TsugikiError(
            "{missing}; to read a data set of that name from the hub: {extra}", missing=missing, extra=EXTRA
        ) from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TsugikiError(
            "{missing}, and no data set of that name on the hub; check the spelling", missing=missing
        ) from error
    except ConnectionError as error:
        raise TsugikiError(
            "{missing}, and the hub cannot be reached to look for a data set of that name", missing=missing
        ) from error
    except Exception as error:  # an unknown split, several configurations, a damaged file
        what = error_text(error.__cause__ or error).rstrip(".;")
        raise TsugikiError(
            "the data set {data} cannot be read: {what}; choose another split or data set", data=data, what=what
        ) from error
