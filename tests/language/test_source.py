"""Every error is in the reader's language, and every message is given the values that it names."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter

from tests.language.catalogue import ERRORS, SOURCE, syntax_tree, untranslated

_FUNCTIONS = {"_", "ngettext", *ERRORS}
_ERRORS = {*ERRORS, "ValueError", "RateTooHighError"}


def test_messages_are_given_the_values_that_they_name() -> None:
    for where, nodes in _modules():
        parents = {child: parent for parent in nodes for child in ast.iter_child_nodes(parent)}
        for call in _calls(nodes, _FUNCTIONS):
            is_message = ast.unparse(call.func) in ERRORS or not any(
                isinstance(part, ast.JoinedStr) for part in call.args
            )
            assert is_message, f"{where}:{call.lineno}: an f-string has no translation"
            texts = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            named = {name for text in texts for _, name, _, _ in Formatter().parse(text) if name not in (None, "flag")}
            method, given = parents[call], {keyword.arg for keyword in call.keywords}
            if isinstance(method, ast.Attribute) and method.attr == "format":
                given = {keyword.arg for keyword in parents[method].keywords}  # type: ignore[attr-defined]
            is_later = isinstance(method, ast.Assign | ast.Call | ast.IfExp | ast.Tuple)
            assert not texts or given - {"flag"} == named or (is_later and not given), (
                f"{where}:{call.lineno} is given {given} for {texts}"
            )


def test_no_name_hides_the_function() -> None:
    for where, nodes in _modules():
        if any(isinstance(node, ast.ImportFrom) and any(name.name == "_" for name in node.names) for node in nodes):
            targets = [node.target for node in nodes if isinstance(node, ast.comprehension)]
            inside = {id(name) for target in targets for name in ast.walk(target)}
            for node in nodes:
                if isinstance(node, ast.Name) and node.id == "_" and isinstance(node.ctx, ast.Store):
                    assert id(node) in inside, f"{where}:{node.lineno} needs another name than _, which translates"


def test_errors_are_translated() -> None:
    for where, nodes in _modules():
        for call in _calls(nodes, _ERRORS):
            message = call.args[0] if call.args else call
            is_translated = isinstance(message, ast.Constant) and ast.unparse(call.func) in ERRORS
            for text in () if is_translated else untranslated(message):
                is_message = any(part.isalpha() and len(part) > 1 for part in text.split())
                assert not is_message, f"{where}:{call.lineno}: {text!r} is not translated"


@cache
def _modules() -> list[tuple[Path, list[ast.AST]]]:
    """Return all nodes of the syntax tree of each module."""
    paths = sorted(SOURCE.rglob("*.py"))
    return [(path.relative_to(SOURCE), [*ast.walk(syntax_tree(path))]) for path in paths]


def _calls(nodes: list[ast.AST], names: set[str]) -> Iterator[ast.Call]:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node
