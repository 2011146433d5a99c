"""Public names of a package whose modules are imported only when a name is used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeAlias

Face: TypeAlias = tuple[Callable[[str], Any], Callable[[], list[str]]]
"""`__getattr__` and `__dir__` of a package."""


def lazy_names(package: str, names: Mapping[str, str]) -> Face:
    """Return `__getattr__` and `__dir__` of a package, so that importing one of its modules imports no others.

    Args:
        package: the name of the package, its `__name__`.
        names: public names, separated by spaces, by the module that defines them, relative to the package.
    """
    module_of = {name: f"{package}.{module}" for module, public in names.items() for name in public.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return get, lambda: sorted(module_of)
