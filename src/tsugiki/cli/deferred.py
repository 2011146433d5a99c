"""Import modules only when something in them is used, and change modules when they are imported.

transformers imports much that a run on one machine never uses: PyTorch's compiler, tensors in shards, SciPy. With

    with deferred(["torch.distributed.tensor"]):
        import transformers.modeling_utils

`from torch.distributed.tensor import DTensor` in transformers returns a stand-in instead of the class. The module is
imported when the stand-in is called, when one of its attributes is read, or when `isinstance` needs the class. After
the block, all other imports return the module itself.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_deferring: list[str] = []
"""Names of the modules that are deferred now."""


@contextmanager
def deferred(modules: Iterable[str]) -> Iterator[None]:
    """Replace the objects that are imported from some modules within the block by stand-ins.

    Args:
        modules: names of modules; modules that are imported already are not replaced.
    """
    for name in modules:
        if name not in sys.modules:
            sys.modules[name] = _DeferredModule(name)
            _deferring.append(name)
    try:
        yield
    finally:
        _end_deferral()


def _end_deferral() -> None:
    """Remove the stand-ins of modules, so that the next import of each loads the module itself."""
    for name in _deferring:
        if isinstance(sys.modules.get(name), _DeferredModule):
            del sys.modules[name]
    _deferring.clear()


@contextmanager
def changed_after_import(name: str, change: Callable[[ModuleType], None]) -> Iterator[None]:
    """Call `change` with a module as soon as it has been executed, if it is imported for the first time in the block.

    Args:
        name: name of the module.
        change: changes the module in place, before other modules import names from it.
    """
    finder = _Finder(name, change)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds one module as Python does, and changes it after its execution, for `changed_after_import`."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == self._name else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


class _DeferredModule(ModuleType):
    """Takes the place of a module in `sys.modules`."""

    def __getattr__(self, name: str) -> "_StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        module = self.__name__

        def find() -> Any:
            _end_deferral()  # the module may import others that are deferred
            return getattr(import_module(module), name)

        return _StandIn(find, module)


class _StandIn:
    """Takes the place of an object, which is imported when it is needed."""

    def __init__(self, find: Callable[[], Any], module: str) -> None:
        self._find, self._module = find, module

    @cached_property
    def _object(self) -> Any:
        return self._find()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if _deferring:  # while modules are imported: `Shard(0)` as a default, or a decorator
            return _StandIn(lambda: self._object(*arguments, **named), self._module)
        return self._object(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._object, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the object, so that `isinstance(stand_in, cls)` is right."""
        return type(self._object)

    def __instancecheck__(self, instance: object) -> bool:
        # While the module of a class has not been imported, only a stand-in can be an instance of the class.
        return (type(instance) is _StandIn or self._module in sys.modules) and isinstance(instance, self._object)

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._object)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._object,)

    def __or__(self, other: Any) -> Any:
        return self  # an annotation, `DTensor | None`

    __ror__ = __or__
