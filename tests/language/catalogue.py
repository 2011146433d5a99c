"""Update the Japanese catalogue: `python -m tests.language.catalogue` reads `src`, updates tsugiki.po and compiles it.

New messages are added with an empty translation, unused ones are removed, and those without a translation are printed.
"""

import ast
import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

from babel.messages import Catalog
from babel.messages.catalog import Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from tests.language.help_texts import help_texts
from tsugiki.language import DOMAIN, JAPANESE

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tsugiki"  # an installed package has no .po
PO = SOURCE / "language" / JAPANESE / "LC_MESSAGES" / f"{DOMAIN}.po"
MO = PO.with_suffix(".mo")
ERRORS = (
    *("TsugikiError", "WriteError", "NotDataError", "NullError", "FileMissing", "SiteUnreachable"),
    *("QueueFull", "WaitedTooLong", "EngineStopped"),
)
"""Errors, which translate the text that they are given."""
_KEYWORDS = {**dict.fromkeys(ERRORS), "_": None, "marked": None, "ngettext": (1, 2), "_counted": (1, 2)}
_METHODS = [
    ("**.py", "python"),
    ("report/**.html", "jinja2.ext.babel_extract"),
    ("hub/**.md", "jinja2.ext.babel_extract"),
]


def template() -> Catalog:
    """Return every message of the source, and every help text of the commands, without translations."""
    found = Catalog(charset="utf-8")
    with redirect_stderr(io.StringIO()):  # errors may have f-strings, which consist of other messages
        messages = sorted(extract_from_dir(SOURCE, _METHODS, keywords=_KEYWORDS))
    for file, _, message, _, _ in messages:
        found.add(message, locations=[(f"src/tsugiki/{Path(file).as_posix()}", 0)])
    for text, file in help_texts():
        found.add(text, locations=[(file, 0)])
    return found


def read_catalogue() -> Catalog:
    """Return the Japanese catalogue."""
    return read_po(io.BytesIO(PO.read_bytes()), locale=JAPANESE, abort_invalid=True)


@cache
def syntax_tree(path: Path) -> ast.Module:
    """Return the syntax tree of a module of the source, which several tests read."""
    return ast.parse(path.read_text(encoding="utf-8"))


def untranslated(node: ast.AST) -> Iterator[str]:
    """Return the texts in an expression that are not arguments of a function, such as the one that translates."""
    if isinstance(node, ast.Call | ast.Subscript | ast.Compare):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from untranslated(child)


def forms(message: Message) -> tuple[str, ...]:
    """Return the translation of a message; one for each number, if it has several forms. Empty texts are missing."""
    return (str(message.string or ""),) if isinstance(message.id, str) else tuple(message.string or ("",))


def main() -> None:
    """Bring both files up to date, and print the messages without a translation."""
    catalogue = read_catalogue()
    catalogue.update(template(), no_fuzzy_matching=True)
    file = io.BytesIO()
    write_po(
        file, catalogue, width=120, omit_header=True, sort_by_file=True, include_lineno=False, ignore_obsolete=True
    )
    header = PO.read_text(encoding="utf-8").partition("\n\n")[0]
    PO.write_text(f"{header}\n\n{file.getvalue().decode().strip()}\n", encoding="utf-8")
    for message in list(catalogue):
        if message.id and not all(forms(message)):
            print(message.id)
            catalogue.delete(message.id)
    with MO.open("wb") as compiled:
        write_mo(compiled, catalogue)


if __name__ == "__main__":
    main()
