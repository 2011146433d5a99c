"""The public names of the modules of a package, which are imported only when a name is used."""

import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

Face: TypeAlias = tuple[Callable[[str], Any], Callable[[], list[str]]]
"""`__getattr__` and `__dir__` of a package."""


def _defined(source: str) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, and names that get a value."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=[*targets]):
                yield from (node.id for one in targets for node in ast.walk(one) if isinstance(node, ast.Name))


def lazy_names(package: str) -> Face:
    """Return `__getattr__` and `__dir__` of the package with this name: it has every public name of its modules.

    They are found in the sources, so that importing one module imports no others. A name that two modules define, or
    that is the name of a module, must be imported from where it is defined.
    """

    @cache
    def modules_of() -> Mapping[str, set[str]]:
        folder, found = Path(sys.modules[package].__path__[0]), defaultdict[str, set[str]](set)
        for path in folder.rglob("*.py"):
            module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
            for name in _defined(path.read_text(encoding="utf-8")):
                found[name].add(module)
        hidden = {path.stem for path in folder.iterdir()}
        return {name: modules for name, modules in found.items() if name[0] != "_" and name not in hidden}

    def get(name: str) -> Any:
        modules = () if name.startswith("_") else modules_of().get(name, ())
        if len(modules) != 1:
            raise AttributeError(f"module {package!r} has {len(modules) or 'no'} attributes called {name!r}")
        return getattr(import_module(*modules), name)

    return get, lambda: sorted(name for name, modules in modules_of().items() if len(modules) == 1)
