"""Documents from files: `.txt` (one document a file), `.jsonl` (one a line, field `text`), or a folder of these."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsugiki.errors import TsugikiError

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Document:
    """One text and where it came from (`file`, or `file:line`)."""

    text: str
    source: str


def read_documents(path: str | Path) -> list[Document]:
    """Every document in a file or folder, in the order of their names.

    UTF-8, UTF-16 (with its mark), EUC-JP and Shift_JIS text is told apart; line ends become LF. Documents
    of white space alone are left out.

    Raises:
        TsugikiError: no such file, a kind that is not read, an encoding that is none of these, a broken
            line, or nothing to read at all.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise TsugikiError(f"{path} holds no {' or '.join(SUFFIXES)} file")
    elif root.is_file():
        files = [root]
    else:
        raise TsugikiError(f"no data at {path}: there is no such file or folder")
    documents = [document for file in files for document in _read_file(file) if document.text.strip()]
    if not documents:
        raise TsugikiError(f"{path} is empty: there is no text to learn from")
    return documents


def decode(data: bytes, name: str) -> str:
    """The text of a file's bytes, with LF line ends; `name` is for the error.

    Strict decoding tells the encodings apart: text in one of these is practically never valid in those
    tried before it.

    Raises:
        TsugikiError: it is none of UTF-8, UTF-16, EUC-JP and Shift_JIS.
    """
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "euc_jp", "cp932"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise TsugikiError(f"{name} is not text in UTF-8, UTF-16, EUC-JP or Shift_JIS; convert it to UTF-8")


def split_documents(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """(train, held out): whole documents, about `fraction` of the characters held out, chosen by `seed`.

    The order of choice comes from the texts' hashes, so that adding a document moves no other. A single
    document is the exception: its last `fraction`, cut at a line end where there is one, is held out.

    Raises:
        TsugikiError: `fraction` is not between 0 and 1, or nothing is left to train on.
    """
    if not 0 < fraction < 1:
        raise TsugikiError(f"held-out fraction is {fraction}; it must be above 0 and below 1")
    if len(documents) == 1:
        return _split_one(documents[0], fraction)
    budget = fraction * sum(len(document.text) for document in documents)
    held_out: set[int] = set()
    for index in sorted(range(len(documents)), key=lambda i: _rank(documents[i].text, seed)):
        length = len(documents[index].text)
        if length <= budget:
            held_out.add(index)
            budget -= length
    if not held_out:
        held_out.add(min(range(len(documents)), key=lambda i: len(documents[i].text)))
    train = [document for index, document in enumerate(documents) if index not in held_out]
    return train, [document for index, document in enumerate(documents) if index in held_out]


def refuse_overlap(train: Iterable[Document], held_out: Iterable[Document]) -> None:
    """Stop where a document is both learned and measured.

    Raises:
        TsugikiError: naming the first such document.
    """
    learned = {document.text: document.source for document in train}
    for document in held_out:
        if document.text in learned:
            raise TsugikiError(
                f"{document.source} (held out) is also in the training data ({learned[document.text]}); "
                "take it out of one of them, since what is measured must not be learned"
            )


def fingerprint(documents: Iterable[Document]) -> str:
    """`sha256:` and 64 digits over the texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest())
    return f"sha256:{digest.hexdigest()}"


def _read_file(path: Path) -> Iterator[Document]:
    try:
        text = decode(path.read_bytes(), str(path))
    except OSError as error:
        raise TsugikiError(f"{path} cannot be read: {error.strerror}") from error
    match path.suffix.lower():
        case ".txt":
            yield Document(text, str(path))
        case ".jsonl":
            yield from _read_lines(text, path)
        case suffix:
            raise TsugikiError(f"{path}: {suffix or 'a file without an ending'} is not read; use .txt or .jsonl")


def _read_lines(text: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TsugikiError(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise TsugikiError(f'{where} has no "text"; each line is an object like {{"text": "…"}}')
        yield Document(record["text"], where)


def _rank(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _split_one(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    middle = int(len(text) * (1 - fraction))
    cut = text.find("\n", middle, len(text) - 1) + 1 or text.rfind("\n", 0, middle) + 1 or middle
    parts = text[:cut], text[cut:]
    if not all(part.strip() for part in parts):
        raise TsugikiError(f"{document.source} is too short to hold a part out; add text or name a held-out file")
    return [Document(parts[0], document.source)], [Document(parts[1], f"{document.source} (its end)")]
