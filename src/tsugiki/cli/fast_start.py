"""Import torch and transformers without what a run on one machine never uses: the compiler, tensors in shards, SciPy.

Python 3.15 of 1 October 2026 has lazy imports (PEP 810, `sys.set_lazy_imports` with a filter). They make the stand-ins
for `_UNUSED` unnecessary as soon as Tsugiki needs no older Python: in October 2028, when 3.14 is three years old. The
functions in `_REPLACED` import modules, or read 2,000 files, when they are called, which no Python defers.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from tsugiki.cli.launcher import is_main_process, several_processes
from tsugiki.errors import TsugikiError
from tsugiki.language import _

_UNUSED = (
    "scipy.optimize", "sklearn.metrics", "torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op",
    "torch.distributed._functional_collectives", "torch.distributed.checkpoint.hf_storage", "torch.distributed.fsdp",
    "torch.distributed.tensor", "torch.distributed.tensor._utils", "torch.distributed.tensor.placement_types",
    "torch.nn.attention.flex_attention",
)  # fmt: skip
_SHARDS = "torch.distributed.tensor"
_NEEDED = ("transformers.modeling_utils", "transformers.generation.utils", "transformers.models.auto.modeling_auto")


def import_libraries(module: str = "tsugiki.training.score.targets") -> None:
    """Import a module that needs torch and transformers, in the main process; a terminal shows a message meanwhile."""
    if module in sys.modules or not is_main_process():
        return
    from tsugiki.io.progress import ProgressDisplay

    with ProgressDisplay().stage(_("loading PyTorch and Transformers"), None):
        gc.disable()  # modules consist of hundreds of thousands of objects that live until the process ends
        sys.meta_path.insert(0, _Finder())
        import_module("transformers.models")
        if not several_processes():
            sys.modules.update({name: _DeferredModule(name) for name in _UNUSED if name not in sys.modules})
        for name in _NEEDED:
            import_module(name)
        _end_deferral()
        import_module(module)
        gc.enable()
        gc.freeze()


def _end_deferral() -> None:
    """Let the next import of a module that is deferred load the module itself."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, _DeferredModule)]:
        del sys.modules[name]


class _DeferredModule(ModuleType):
    """Takes the place of a module while others import names from it."""

    def __getattr__(self, name: str) -> "_StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(self.__name__, lambda: getattr(import_module(self.__name__), name))


class _StandIn:
    """Takes the place of an object, which is found in its module when it is used."""

    def __init__(self, module: str, find: Callable[[], Any]) -> None:
        self._module, self._find = module, find

    @cached_property
    def _object(self) -> Any:
        _end_deferral()  # the module may import others that are deferred
        return self._find()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if isinstance(sys.modules.get(self._module), _DeferredModule):  # `Shard(0)` as a default, or a decorator
            return _StandIn(self._module, lambda: self._object(*arguments, **named))
        return self._object(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._object, name)

    def __instancecheck__(self, instance: object) -> bool:
        # While the module of a class has not been imported, there are no instances.
        return self._module in sys.modules and isinstance(instance, self._object)

    __or__ = __ror__ = lambda self, other: self  # an annotation, `DTensor | None`


class _Finder:
    """Replaces functions of modules before others import them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _REPLACED else None
        if spec is None or spec.loader is None:
            return None
        execute, (function, replacement) = spec.loader.exec_module, _REPLACED[name]

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            if hasattr(module, function):  # other releases may lack it
                setattr(module, function, partial(replacement, getattr(module, function)))

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


def _files_of_classes(read: Any, path: Any, prefix: str | None = None) -> dict[Any, Any]:
    """Return in which file each class of transformers is, from the cache until transformers is installed again."""
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.json import read_json, write_json

    models = Path(path).parent if Path(path).name == "__init__.py" else Path(path)
    if models.name != "models" or "-packages" not in str(models):  # the files of a checkout change
        return dict(read(path, prefix))
    cache, stat = cache_folder("imports") / "transformers.json", (models.parent / "__init__.py").stat()
    version, found = [str(models), stat.st_mtime_ns, stat.st_size], None
    with suppress(TsugikiError, AttributeError, TypeError, KeyError):
        if (cached := read_json(cache))["version"] == version:
            found = _converted(cached["classes"], lambda key: frozenset(key.split()) if key[:1] == " " else key, set)
    if found is None:
        found = read(path)
        with suppress(TsugikiError, OSError, TypeError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            kept = _converted(found, lambda key: key if isinstance(key, str) else f" {' '.join(sorted(key))}", sorted)
            write_json(cache, {"version": version, "classes": kept})
    start = f"{prefix}." if prefix else ""
    return {needs: {f"{start}{file}": names for file, names in files.items()} for needs, files in found.items()}


def _converted(files: Any, key: Callable[[Any], Any], names: Callable[[Any], Any]) -> Any:
    """Return nested dictionaries with other keys, and other collections of names as values."""
    is_folder = isinstance(files, dict)
    return {key(name): _converted(files[name], key, names) for name in files} if is_folder else names(files)


_REPLACED: dict[str, tuple[str, Callable[..., Any]]] = {
    # A command compiles nothing, so no function is excluded from compilation, and no graph is broken in an optimiser.
    "torch._compile": ("_disable_dynamo", lambda exclude, fn=None, recursive=True: fn or (lambda function: function)),
    "torch.optim.optimizer": ("_use_grad_for_differentiable", lambda of, step: sys.modules["torch"].no_grad()(step)),
    # A custom operator notes where it is defined, and to find this takes 0.1 s for the first one.
    "torch._library.utils": ("get_source", lambda find, stacklevel: ""),
    # Tensors on the meta device have no values; drawing them would import SymPy.
    "torch.nn.init": ("_no_grad_normal_", lambda draw, to, *at, **how: to if to.is_meta else draw(to, *at, **how)),
    # Before the class of tensors that are split over processes has been imported, there are none.
    "transformers.distributed.utils": ("is_dtensor", lambda check, it: _SHARDS in sys.modules and check(it)),
    "transformers.utils.import_utils": ("define_import_structure", _files_of_classes),
}
"""Module -> its function that imports or reads too much, and what is called instead, with the function first."""
