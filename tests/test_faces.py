"""Every public name of every package resolves, to what it names whatever was imported before."""

from importlib import import_module
from pathlib import Path

import pytest

import tsugiki

PACKAGES = sorted(path.parent for path in Path(tsugiki.__path__[0]).glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_public_names_resolve(package: Path):
    if package.name == "serve":
        pytest.importorskip("starlette", reason="the server's libraries are an extra")
    module = import_module(f"tsugiki.{package.name}")
    assert [name for name in dir(module) if not hasattr(module, name)] == []
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_module_hides_a_public_name(package: Path):
    """Importing a module sets the attribute of its package, also if the package has a public name like it."""
    modules = {path.stem for path in package.iterdir()} - {"counts"}  # a module that is public as such
    assert {
        name for name in dir(import_module(f"tsugiki.{package.name}")) if not name.startswith("_")
    } & modules == set()
