"""The public names of the modules of a package, which are imported only when a name is used."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

Face: TypeAlias = tuple[Callable[[str], Any], Callable[[], list[str]]]
"""`__getattr__` and `__dir__` of a package."""

_DEFINED = re.compile(r"^(?:def|class) (\w+)|^([A-Za-z]\w*(?:, \w+)*)(?:: [^=\n]+)? = ", re.MULTILINE)
"""The beginning of a definition in a module: a function, a class, or names that get a value."""


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
            for function, values in _DEFINED.findall(path.read_text(encoding="utf-8")):
                for name in (function or values).split(", "):
                    found[name].add(module)
        hidden = {path.stem for path in folder.iterdir()}
        return {name: modules for name, modules in found.items() if name[0] != "_" and name not in hidden}

    def get(name: str) -> Any:
        modules = () if name.startswith("_") else modules_of().get(name, ())
        if len(modules) != 1:
            raise AttributeError(f"module {package!r} has {len(modules) or 'no'} attributes called {name!r}")
        return getattr(import_module(*modules), name)

    return get, lambda: sorted(modules_of())
