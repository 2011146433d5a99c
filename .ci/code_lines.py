"""Count the tokens of code of `src/tsugiki` and of `tests`, and fail where there are more than `pyproject.toml` allows.

A token of code is one of Python's tokenizer that is neither layout nor a comment, and stands on no line of a docstring
or an import. Lines can be packed to fit under a ceiling, and tokens cannot. `javascript` is the page, of which all
lines count that are neither blank nor begin as a comment. The ceiling of `src` may only fall: it is compared with every
earlier value in the history, where there is one. That of the tests rises with a commit that says what they state.
"""

import ast
import io
import math
import re
import subprocess
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tsugiki"
_LAYOUT = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}


def code_tokens(text: str) -> int:
    """Return the number of tokens of code in a module."""
    outside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                outside.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(tokenize.tok_name[token.type] not in _LAYOUT and token.start[0] not in outside for token in tokens)


def room_of(path: Path) -> str:
    """Return the room of a module: its folder, or "." for the modules that are in none."""
    *folders, _name = path.relative_to(SOURCE).parts
    return "/".join(folders[: 2 if folders[:1] == ["training"] else 1]) or "."


def lowest_ceiling() -> float:
    """Return the lowest value that the ceiling of `src` has had in the history; infinity without git."""
    command = ["git", "log", "-p", "--format=", "-G^tokens-of-src", "--", "pyproject.toml"]
    try:
        history = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return math.inf
    return min(map(int, re.findall(r"^[-+]tokens-of-src = (\d+)", history, re.MULTILINE)), default=math.inf)


def main() -> None:
    """Print the counts, and exit with 1 if one is above its ceiling, or that of `src` above an earlier one."""
    ceilings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tsugiki"]["code"]
    rooms: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        rooms[room_of(path)] += code_tokens(path.read_text(encoding="utf-8"))
    scripts = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.js") if path.parent.name != "vendor"]
    found = {
        "tokens-of-src": rooms.total(),
        "tokens-of-tests": sum(code_tokens(path.read_text("utf-8")) for path in (ROOT / "tests").rglob("*.py")),
        "lines-of-javascript": len(re.findall(r"^ *(?!//|/?\*)\S", "\n".join(scripts), re.MULTILINE)),
    }
    for room, tokens in rooms.most_common():
        print(f"{tokens:9,}  {room}")
    failed = False
    for name, count in found.items():
        ceiling, notes = ceilings[name], []
        if count > ceiling:
            notes.append(f"more than {ceiling:,}, the ceiling in pyproject.toml")
        if name == "tokens-of-src" and ceiling > lowest_ceiling() + ceilings["allowed"]:
            notes.append(f"the ceiling has been {lowest_ceiling():,} before, and may only fall")
        failed |= bool(notes)
        print("  ".join([f"{count:9,} of {ceiling:,}", name, *notes]))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
