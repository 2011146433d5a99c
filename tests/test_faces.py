"""Every public name of every package resolves."""

from importlib import import_module
from pathlib import Path

import pytest

import tsugiki

PACKAGES = sorted(path.parent.name for path in Path(tsugiki.__path__[0]).glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_resolve(package: str):
    module = import_module(f"tsugiki.{package}")
    assert [name for name in dir(module) if not hasattr(module, name)] == []
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018
