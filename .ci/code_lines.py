"""Count the lines of code of each room in `src/tsugiki`, and fail where one has more than `pyproject.toml` allows.

A line of code has a token that is no comment, no docstring and no import. A room is a package, or one of the rooms of
training. `javascript` is the page, of which all lines count that are neither blank nor begin as a comment. Whoever
needs more raises the ceiling in the same commit.
"""

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tsugiki"
_LAYOUT = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}


def code_lines(text: str) -> int:
    """Return the number of lines of code in a module."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokenize.tok_name[token.type] not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def room_of(path: Path) -> str:
    """Return the room of a module: its folder, or "." for the modules that are in none."""
    *folders, _name = path.relative_to(SOURCE).parts
    return "/".join(folders[: 2 if folders[:1] == ["training"] else 1]) or "."


def main() -> None:
    """Print the lines of each room, and exit with 1 if a ceiling is exceeded or missing."""
    ceilings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tsugiki"]["code-lines"]
    found: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        found[room_of(path)] += code_lines(path.read_text(encoding="utf-8"))
    scripts = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.js") if path.parent.name != "vendor"]
    javascript = len(re.findall(r"^ *(?!//|/?\*)\S", "\n".join(scripts), re.MULTILINE))
    too_many = 0
    for room, lines in [*found.most_common(), ("total", found.total()), ("javascript", javascript)]:
        ceiling = ceilings.get(room, 0)
        too_many += lines > ceiling
        note = f"  more than {ceiling:,}, the ceiling in pyproject.toml" if lines > ceiling else ""
        print(f"{lines:7,} of {ceiling:6,}  {room}{note}")
    raise SystemExit(bool(too_many))


if __name__ == "__main__":
    main()
