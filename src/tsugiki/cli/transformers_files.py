"""Cache the import structure of transformers.

To find the module of each of its classes, `import transformers` reads all 2,000 files of its models, twice. The result
depends only on these files, so it is cached until transformers is installed again.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tsugiki.cli.deferred import changed_after_import
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import write_text
from tsugiki.io.cache import cache_folder

_FUNCTION = "create_import_structure_from_path"
Structure = dict[Any, Any]
"""Folder -> its structure; set of required packages -> module -> names of the classes that require them."""


def remembered_files() -> AbstractContextManager[None]:
    """Let transformers, if it is imported in the block, read its import structure from the cache.

    A release of transformers that lacks the function, or calls it differently, is imported unchanged.
    """
    return changed_after_import("transformers.utils.import_utils", _remember)


def _remember(module: ModuleType) -> None:
    if hasattr(module, _FUNCTION):
        setattr(module, _FUNCTION, _remembering(getattr(module, _FUNCTION)))


def _remembering(read: Callable[[Any], Structure]) -> Callable[[Any], Structure]:
    """Return a function that reads the folder of models once, and calls `read` for all others."""
    root = find_spec("transformers")
    if root is None or root.origin is None or "-packages" not in root.origin:  # the files of a checkout change
        return read
    models = Path(root.origin).parent / "models"
    version = [[str(path), (stat := path.stat()).st_mtime_ns, stat.st_size] for path in (Path(root.origin), models)]
    cache = cache_folder("imports") / "transformers.json"

    def structure(path: Any) -> Structure:
        if Path(path) not in (models, models / "__init__.py"):
            return read(path)
        with suppress(OSError, ValueError, TypeError, KeyError):
            cached = json.loads(cache.read_text(encoding="utf-8"))
            if cached["version"] == version:
                return _from_json(cached["structure"])
        result = read(path)
        with suppress(OSError, TsugikiError, TypeError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps({"version": version, "structure": _to_json(result)}))
        return result

    return structure


def _to_json(structure: Structure) -> dict[str, Any]:
    folders = {name: _to_json(inside) for name, inside in structure.items() if isinstance(name, str)}
    modules = [
        [sorted(packages), {module: sorted(names) for module, names in inside.items()}]
        for packages, inside in structure.items()
        if not isinstance(packages, str)
    ]
    return {"folders": folders, "modules": modules}


def _from_json(content: dict[str, Any]) -> Structure:
    modules = {
        frozenset(packages): {module: set(names) for module, names in inside.items()}
        for packages, inside in content["modules"]
    }
    return {**modules, **{name: _from_json(inside) for name, inside in content["folders"].items()}}
