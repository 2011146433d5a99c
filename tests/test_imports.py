"""No module of Tsugiki imports, by way of others, itself: neither in its code, nor for its types alone."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tsugiki

FOLDER = Path(tsugiki.__path__[0])
MODULES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts): path
    for path in FOLDER.rglob("*.py")
    if path.name != "__init__.py"  # a face, which names what is inside its package
}


def statements(node: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    """All nodes below a node, those of `if TYPE_CHECKING` only if they are wanted."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_types:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child, with_types)


def imported(path: Path, with_types: bool) -> set[str]:
    names = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), with_types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys()


@pytest.mark.parametrize("with_types", [False, True], ids=["code", "types"])
def test_no_imports_go_in_a_circle(with_types: bool):
    graph = {name: imported(path, with_types) for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(error.args[1])))
