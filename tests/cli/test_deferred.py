"""Modules that are imported when something in them is used."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tsugiki.cli import changed_after_import
from tsugiki.cli.deferred import deferred

_SHAPES = """
class Shape:
    def __init__(self, sides): self.sides = sides
def double(function): return lambda number: 2 * function(number)
square = Shape(4)
"""
_USER = """
from later_shapes import Shape, double, square
def is_shape(value: "Shape | None"): return isinstance(value, Shape)
def annotated(value: Shape | None): return value
default = Shape(3)
def round_shape():
    class Round(Shape): pass
    return Round(0)
@double
def plus_one(number): return number + 1
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that takes names from a deferred one while it is imported."""
    (tmp_path / "later_shapes.py").write_text(_SHAPES)
    (tmp_path / "later_user.py").write_text(_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    with deferred(["later_shapes"]):
        import later_user  # type: ignore[import-not-found]
    yield later_user
    for name in ("later_shapes", "later_user"):
        sys.modules.pop(name, None)


def test_nothing_is_imported_before_it_is_used(user: Any):
    assert "later_shapes" not in sys.modules
    assert not user.is_shape(3)
    assert "later_shapes" not in sys.modules


@pytest.mark.parametrize(
    ("use", "result"),
    [
        (lambda user: user.Shape(5).sides, 5),
        (lambda user: user.square.sides, 4),
        (lambda user: user.default.sides, 3),
        (lambda user: user.is_shape(user.default), True),
        (lambda user: user.plus_one(1), 4),
        (lambda user: user.round_shape().sides, 0),
    ],
)
def test_what_is_used_is_as_if_it_had_been_imported(user: Any, use: Any, result: object):
    assert use(user) == result
    assert "later_shapes" in sys.modules


def test_an_instance_made_elsewhere_is_one(user: Any):
    import later_shapes  # type: ignore[import-not-found]

    assert user.is_shape(later_shapes.Shape(1))
    assert isinstance(user.default, later_shapes.Shape)
    assert issubclass(later_shapes.Shape, user.Shape)


def test_a_module_that_is_imported_already_is_left(user: Any):
    import later_shapes

    with deferred(["later_shapes"]):
        assert sys.modules["later_shapes"] is later_shapes
    assert sys.modules["later_shapes"] is later_shapes


def test_a_module_is_changed_before_its_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "changed_module.py").write_text("name = 'before'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    with changed_after_import("changed_module", lambda module: setattr(module, "name", "after")):
        from changed_module import name  # type: ignore[import-not-found]
    del sys.modules["changed_module"]
    assert (name, sys.meta_path) == ("after", finders)
