"""Read records from files, folders, patterns, or data sets on the hub, one by one.

    .txt, .md                  a document
    .html, .htm, .epub, .docx, .pdf   a document (see `html`, `epub` and `office`)
    .eml, .mbox                a document for each mail (see `mail`)
    .jsonl, .json, .csv, .tsv, .xlsx, .parquet   a record for each row (see `tables`; its fields: `schemas`)
    chats of WhatsApp, LINE (.txt) and Telegram (.json)   conversations (see `chats`)
    .zip                       the texts and tables in it

A text that is a work of Aozora Bunko, as the library distributes it, is read without its notation (see `aozora.text`).
A text, a book or a `.json` file is read whole, a zip member by member, other files row by row (`.parquet`: in batches).
"""

import glob
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from tsugiki.data.read.aozora.text import clean_work, has_annotations, is_work, standard_characters
from tsugiki.data.read.character_encoding import NAMES, decode, decode_as, detect_encoding
from tsugiki.data.read.chats import is_chat, json_chats, text_rows
from tsugiki.data.read.html import html_text
from tsugiki.data.read.schemas import (
    FIELD_LENGTH,
    KEYS,
    NO_COLUMNS,
    Columns,
    NotDataError,
    NullError,
    Wanted,
    known_columns,
    read_row,
    schema_of,
    unused_columns,
    with_fields,
)
from tsugiki.data.read.tables import (
    NumberedRows,
    OpenFile,
    csv_rows,
    dataset_fingerprint,
    dataset_rows,
    is_dataset_name,
    json_rows,
    jsonl_rows,
    opener,
    parquet_rows,
    rows_of_cells,
)
from tsugiki.data.records import Document, Reading, Record
from tsugiki.errors import TsugikiError, error_text, summarise_list, unreadable
from tsugiki.io.archives import read_zip, zip_members
from tsugiki.io.digests import combined_digest, file_sha256
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.language import _, listed, marked

Data: TypeAlias = str | Path | Sequence[str]
"""A file, a folder, a pattern such as `texts/*.txt`, or the name of a data set on the hub; or several of these."""

_PAGES, _DELIMITED = (".html", ".htm"), (".csv", ".tsv")
_TEXTS = (".txt", ".md", *_PAGES)
_FROM_STREAM = (*_TEXTS, ".jsonl", ".json", *_DELIMITED)
"""Suffixes of files that are read from a stream, so that they can also be in a zip."""
_JAPANESE = ("euc_jp", "cp932")
_MAX_ZIP = 1 << 30  # bytes that a zip may unpack to
# Files that accompany data in a folder or a zip; they are read only if they are given by name.
_ABOUT_DATA = ("readme", "license", "licence", "notice", "changelog", "copying")

_WORD = marked("{root}: save the text as a .docx file first (in Word: File, Save As, Word Document)")
_SHEET = marked("{root}: save the table as a .xlsx file first (in Excel: File, Save As, Excel Workbook)")
_OTHER_KIND = marked("{root}: {kind} is not supported; use {suffixes} or {last}")
_HOW_TO_SAVE = {
    **dict.fromkeys((".doc", ".odt", ".rtf"), _WORD),
    **dict.fromkeys((".xls", ".ods"), _SHEET),
}


def read_records(data: Data, columns: Columns = NO_COLUMNS, reading: Reading | None = None) -> Iterator[Record]:
    """Yield every record: data in the given order, files of a folder sorted by name, rows of a file in order.

    UTF-8, UTF-16, ISO-2022-JP, EUC-JP and Shift_JIS are detected; a short text that can be in either of the last two
    is in the one that more of the other files have. Line ends become LF. Documents that contain only white space are
    skipped. In a folder, all files with the suffixes above are read.

    Args:
        data: the data to read. A text that names no file or folder is a pattern if it has `*`, `?` or `[`, otherwise
            the name of a data set on the hub: `owner/name`, or `owner/name:split` for a split other than train. No code
            from a data set is executed.
        columns: names of columns that differ from those in `schemas`.
        reading: is filled with facts about the files; complete when all records are read.
    """
    return read_wanted(data, Wanted(KEYS, _one_record, columns), Reading() if reading is None else reading)


def read_wanted(data: Data, wanted: Wanted, reading: Reading) -> Iterator[Record]:
    """Yield every record as `read_records` does, with other schemas for the rows of tables."""
    return _refuse_empty(chain.from_iterable(read_parts(data, wanted, reading)), data)


def read_parts(data: Data, wanted: Wanted, reading: Reading) -> list[Iterator[Record]]:
    """Return the records of each file and data set, as `read_records` yields them together."""
    sources = _sources(data, reading)
    usual = _usual_encoding(_openers(sources))
    return [_read(source, wanted, reading, usual) for source in sources]


def _one_record(row: Mapping[str, Any], source: str, reading: Reading) -> list[Record]:
    record = read_row(row, source)
    return [] if record is None else [record]


def check_data(data: Data) -> None:
    """Check that the data exist, in files of a supported type. Nothing is read, and the hub is not contacted."""
    _sources(data, Reading())


def record_kinds(data: Data, columns: Columns = NO_COLUMNS) -> set[type[Record]]:
    """Return the kinds of the records, by the first record of each file."""
    parts = read_parts(data, Wanted(KEYS, _one_record, columns), Reading())
    return {type(record) for part in parts for record in islice(part, 1)}


def content_key(data: Data, columns: Columns = NO_COLUMNS) -> str:
    """Return a digest that identifies what `read_records` would read.

    It covers the names and the bytes of files, or the fingerprint of a data set on the hub.
    """
    digests: dict[str, str] = {}
    for source in _sources(data, Reading()):
        if isinstance(source, str):
            digests[source] = dataset_fingerprint(source)
            continue
        try:
            digests[source.name + _way_of_reading(source.path)] = file_sha256(source.path)
        except OSError as error:
            raise unreadable(source.path, error) from error
    digests |= {f"column {field}": column for field, column in columns.items()}
    return combined_digest(digests)


def describe_data(data: Data) -> str:
    """Return a short text that names the data in messages."""
    return str(data) if isinstance(data, str | Path) else summarise_list([str(source) for source in data])


# Finding files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file to read."""

    path: Path
    name: str
    """The path relative to the given folder; the digest of the content is computed under this name."""
    is_chosen: bool
    """Whether the user has named the file. In a folder, a table without known fields is skipped."""


def _sources(data: Data, reading: Reading) -> list[_File | str]:
    """Return the files to read, each once, and the names of data sets on the hub."""
    given = [data] if isinstance(data, str | Path) else list(data)
    found: dict[Path | str, _File | str] = {}
    roots = [root for source in given for root in _expand(source)]
    for number, root in enumerate(roots):
        if isinstance(root, str):
            found.setdefault(root, root)
            continue
        for file in _files(root, reading):
            # In several folders, files of the same name are different ones.
            named = file if len(roots) == 1 else _File(file.path, f"{number}/{file.name}", file.is_chosen)
            found.setdefault(file.path.resolve(), named)
    sources = list(found.values())
    reading.files = [source if isinstance(source, str) else str(source.path) for source in sources]
    return sources


def _expand(given: str | Path) -> list[Path | str]:
    """Return the files and folders that a text names, or the name of a data set."""
    if str(given).startswith(("http:/", "https:/")):  # a `Path` has only one of the two slashes
        raise TsugikiError(
            "{data} is a web address; download the file, or use tsugiki aozora for works of Aozora Bunko",
            data=error_text(given, 200),
        )
    path = _local_path(given)
    if path.exists() or isinstance(given, Path):
        return [path]
    if any(mark in given for mark in "*?["):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise TsugikiError("no file matches {pattern}", pattern=error_text(given, 200))
        return [Path(match) for match in matches]
    if is_dataset_name(given) and Path(given.partition(":")[0]).suffix.lower() not in DATA_SUFFIXES:
        return [given]
    return [path]


def _local_path(data: str | Path) -> Path:
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a home folder that does not exist
        raise TsugikiError(
            "no data at {data}: {error}", data=error_text(data, 100), error=error_text(error, 100)
        ) from error
    return path


def _files(root: Path, reading: Reading) -> list[_File]:
    """Return the file, or the data files in the folder; the folder's other files go to `reading.passed_over`."""
    others, last = listed(DATA_SUFFIXES[:-1]), DATA_SUFFIXES[-1]
    if root.is_dir():
        inside = sorted(path for path in root.rglob("*") if path.is_file())
        names = {path: path.relative_to(root).as_posix() for path in inside}
        files = [_File(path, name, False) for path, name in names.items() if _is_data(name, DATA_SUFFIXES)]
        if not files:
            raise TsugikiError("{root} contains no {suffixes} or {last} file", root=root, suffixes=others, last=last)
        read = {file.path for file in files}
        reading.passed_over += [str(path) for path, name in names.items() if path not in read and not _is_beside(name)]
        return files
    if not root.is_file():
        message = _("there is no file or folder {root} (data sets on the hub are written owner/name)")
        if PureWindowsPath(root).drive:
            message = _("there is no file or folder {root}")
        raise TsugikiError(message.format(root=root))
    if root.suffix.lower() not in DATA_SUFFIXES:
        kind = root.suffix or _("a file without a suffix")
        raise TsugikiError(
            _HOW_TO_SAVE.get(root.suffix.lower(), _OTHER_KIND), root=root, kind=kind, suffixes=others, last=last
        )
    return [_File(root, root.name, True)]


def _is_data(name: str, suffixes: Sequence[str]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes and not _is_beside(name)


def _is_beside(name: str) -> bool:
    """Return whether a file accompanies data, is hidden or in a hidden folder, or was added to a zip by macOS."""
    path = PurePosixPath(name)
    return path.stem.lower() in _ABOUT_DATA or any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


# Reading -------------------------------------------------------------------------------------------------


def _openers(sources: Iterable[_File | str]) -> Iterator[OpenFile]:
    """Yield functions that open the texts and tables among files."""
    for source in sources:
        if isinstance(source, _File) and source.path.suffix.lower() in _FROM_STREAM:
            yield opener(source.path)


def _usual_encoding(files: Iterable[OpenFile]) -> Callable[[], str]:
    """Return a function that says whether more of these files are in EUC-JP or in Shift_JIS; "" if none is in either.

    They are read when it is called first.
    """

    @cache
    def usual() -> str:
        found = Counter[str]()
        for open_file in files:
            with suppress(TsugikiError, OSError):
                found[detect_encoding(open_file, "", lambda: "latin-1")] += 1  # any bytes are valid in it
        return max(("", *_JAPANESE), key=found.__getitem__)

    return usual


def _read(source: _File | str, wanted: Wanted, reading: Reading, usual: Callable[[], str]) -> Iterator[Record]:
    """Return the records of a file or a data set; a data set on the hub is looked up immediately.

    `usual` says which encoding a text has that could be in two.
    """
    if isinstance(source, str):
        return _records_of_rows(dataset_rows(source, wanted), source, wanted, reading)
    return _read_file(source, wanted, reading, usual)


def _read_file(source: _File, wanted: Wanted, reading: Reading, usual: Callable[[], str]) -> Iterator[Record]:
    path, suffix = source.path, source.path.suffix.lower()
    records: Iterator[Record]
    match suffix:
        case ".zip":
            records = _read_zip(path, wanted, reading)
        case ".epub":
            records = _read_book(path, reading)
        case ".docx" | ".pdf" | ".xlsx":
            records = _read_office(path, suffix, wanted, reading)
        case ".eml" | ".mbox":
            from tsugiki.data.read.mail import mail_rows

            records = _records_of_rows(mail_rows(path, reading), str(path), wanted, reading)
        case ".parquet":
            records = _records_of_rows(parquet_rows(path, wanted), str(path), wanted, reading)
        case _:
            records = _read_stream(opener(path), str(path), suffix, wanted, reading, usual)
    try:
        yield from records if source.is_chosen else _without_other_tables(records, str(path), reading)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_stream(
    open_file: OpenFile, name: str, suffix: str, wanted: Wanted, reading: Reading, usual: Callable[[], str]
) -> Iterator[Record]:
    """Yield the records of a text or a table with one of the suffixes `_FROM_STREAM`.

    `open_file` is called several times: to find the encoding, and to read. `usual` says which encoding, EUC-JP or
    Shift_JIS, is tried first if the text can be in both.
    """
    encoding = detect_encoding(open_file, name, usual)
    if encoding in NAMES:
        reading.encodings.setdefault(NAMES[encoding], []).append(name)
    if suffix in _DELIMITED:
        rows = csv_rows(open_file, name, encoding, wanted, "\t" if suffix == ".tsv" else None)
    elif suffix == ".jsonl":
        rows = jsonl_rows(open_file, name, encoding)
    elif suffix == ".json":
        rows = json_chats(json_rows(open_file, name, encoding), name, wanted.columns, reading)
    else:
        with open_file() as file:
            text = decode_as(file.read(), encoding)
        if suffix == ".txt" and is_chat(text):
            rows = text_rows(text, name, wanted.columns, reading)
        elif suffix == ".txt" and encoding.startswith("utf-16") and "\t" in text.partition("\n")[0]:
            rows = csv_rows(open_file, name, encoding, wanted, "\t")  # Excel's "Unicode text"
        else:
            yield from _read_text(text, encoding, name, suffix, reading)
            return
    yield from _records_of_rows(rows, name, wanted, reading)


def _read_text(text: str, encoding: str, name: str, suffix: str, reading: Reading) -> Iterator[Document]:
    """Yield the document in a text file; none if it is empty."""
    if suffix == ".txt" and is_work(text):
        try:
            work = clean_work(standard_characters(text) if encoding == "cp932" else text, name)
        except TsugikiError:  # there is no text between header and footer
            reading.empty.append(name)
            return
        reading.works.append(name)
        reading.unresolved += work.unresolved
        yield _document(work.text, name, work.title, work.author)
        return
    if suffix in _PAGES:
        text = html_text(text)
    if text.strip():
        if has_annotations(text):
            reading.annotated.append(name)
        yield Document(text, name)
    else:
        reading.empty.append(name)


def _read_book(path: Path, reading: Reading) -> Iterator[Document]:
    from tsugiki.data.read.epub import read_epub  # few runs read books

    book = read_epub(path)
    if book.text.strip():
        yield _document(book.text, str(path), book.title, book.author)
    else:
        reading.empty.append(str(path))


def _read_office(path: Path, suffix: str, wanted: Wanted, reading: Reading) -> Iterator[Record]:
    from tsugiki.data.read import office

    if suffix != ".xlsx":
        text = office.docx_text(path) if suffix == ".docx" else office.pdf_text(path, reading)
        yield from _read_text(text, "", str(path), suffix, reading)
        return
    sheets = office.sheets(path)
    for title, cells in sheets:
        name = str(path) if len(sheets) == 1 else f"{path} ({title})"
        records = _records_of_rows(rows_of_cells(cells, name, wanted), name, wanted, reading)
        yield from records if len(sheets) == 1 else _without_other_tables(records, name, reading)


def _document(text: str, name: str, title: str, author: str) -> Document:
    fields = {"title": title, "author": author}
    return Document(text, name, {key: value for key, value in fields.items() if 0 < len(value) <= FIELD_LENGTH})


def _read_zip(path: Path, wanted: Wanted, reading: Reading) -> Iterator[Record]:
    """Yield the records of the texts and tables in a zip. Nothing is unpacked to the disk."""
    members = {name: is_link for name, is_link in zip_members(path).items() if not _is_beside(name)}
    chosen = [name for name, is_link in members.items() if _is_data(name, _FROM_STREAM) and not is_link]
    if not chosen:
        raise NotDataError(
            "{path} contains no {known} file; unpack it, and give the folder", path=path, known=", ".join(_FROM_STREAM)
        )
    others = set(members).difference(chosen)
    reading.passed_over += [
        f"{path}/{name}" + (_(" (link)") if members[name] else "") for name in members if name in others
    ]
    usual = _usual_encoding(partial(io.BytesIO, content) for _name, content in read_zip(path, chosen, _MAX_ZIP))
    for name, content in read_zip(path, chosen, _MAX_ZIP):
        shown = str(path) if len(chosen) == 1 else f"{path}/{name}"
        suffix = PurePosixPath(name).suffix.lower()
        records = _read_stream(partial(io.BytesIO, content), shown, suffix, wanted, reading, usual)
        yield from records if len(chosen) == 1 else _without_other_tables(records, shown, reading)


def _without_other_tables(records: Iterator[Record], name: str, reading: Reading) -> Iterator[Record]:
    """Yield the records of a file; if its first row has no known fields, only record its name in `reading`."""
    try:
        first = next(records, None)
    except NotDataError:
        reading.without_fields.append(name)
        return
    if first is not None:
        yield first
        yield from records


def _records_of_rows(rows: NumberedRows, name: str, wanted: Wanted, reading: Reading) -> Iterator[Record]:
    """Yield the records of one file, and check that all rows have the same schema.

    The first row tells which columns are used. Rows with null in one of them are left out, if not all are.
    """
    expected: str | None = None
    null: NullError | None = None
    first, used = 0, wanted.columns
    for number, original in rows:
        if expected is None:
            used = known_columns(original, wanted) or wanted.columns
        where, row = f"{name}:{number}", with_fields(original, used)
        try:
            schema = schema_of(row, where, wanted.keys)
        except NullError as error:
            null = null or error
            reading.empty.append(where)
            continue
        except NotDataError as error:
            raise error if expected is None else TsugikiError(str(error)) from error
        if expected is None:
            expected, first = schema, number
            pair = [] if used is wanted.columns else [f"{used['prompt']} → {used['completion']}"]
            reading.pairs += [names for names in pair if names not in reading.pairs]
            unused = unused_columns(row, schema, wanted.keys)
            reading.unused += [column for column in unused if column not in reading.unused]
        if schema != expected:
            raise TsugikiError(
                "{where} has {schema}, but line {first} has {expected}; put them in separate files",
                where=where,
                schema=schema,
                first=first,
                expected=expected,
            )
        yield from wanted.read(row, where, reading)
    if expected is None and null is not None:
        raise null


def _way_of_reading(path: Path) -> str:
    """Return a suffix for a file's cache key: not empty for works of Aozora Bunko, whose notation is removed."""
    if path.suffix.lower() != ".txt":
        return ""
    try:
        return " (Aozora Bunko)" if is_work(decode(path.read_bytes(), str(path))[0]) else ""
    except TsugikiError:  # the same error is raised when the file is read
        return ""


def _refuse_empty(records: Iterable[Record], data: Data) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise TsugikiError("{data} is empty: there is no text to train on", data=describe_data(data))
