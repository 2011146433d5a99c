"""What "How to add something" asks for beside the code is there for each that was added."""

import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from tests.preference.test_losses import FORMULAS
from tsugiki.cli import root_command
from tsugiki.cli.adapters import ADAPTERS
from tsugiki.cli.app import _COMMANDS
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.preference.losses import LOSSES
from tsugiki.training.settings.config import LOSS, PreferenceName

ROOT = Path(__file__).parents[2]
OF_SINGLE_ANSWERS = {"kto"}
"""Losses with a formula of their own in the tests, because they need no pairs."""
OTHERS = {"root_command", "as_command", "print_next_command"}
"""Functions that have such a name, and are no commands."""


@pytest.mark.parametrize("page", ["docs/data.md", "docs/data.ja.md", "tests/data/read/test_*.py"])
def test_each_kind_of_file_is_explained_and_read(page: str):
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob(page))
    missing = [suffix for suffix in DATA_SUFFIXES if not re.search(rf"\b{suffix[1:]}\b", text)]
    assert missing in ([], [".htm"]), "an ending of DATA_SUFFIXES is missing"


def test_each_loss_has_a_name_a_label_and_a_formula():
    assert get_args(PreferenceName) == (*LOSSES,) == (*LOSS.choices,)
    assert FORMULAS.keys() >= LOSSES.keys() - OF_SINGLE_ANSWERS


@pytest.mark.parametrize("page", ["docs/preference.md", "docs/preference.ja.md"])
def test_each_loss_has_a_row_in_the_guide(page: str):
    assert {*re.findall(r"(?m)^\| `(\w+)` \|", (ROOT / page).read_text(encoding="utf-8"))} >= LOSSES.keys()


def test_each_command_is_in_the_list():
    listed = {one for command in (*_COMMANDS.values(), *ADAPTERS.values()) for one in command}
    for path in (ROOT / "src/tsugiki/cli").glob("[a-z]*.py"):
        names = re.findall(r"(?m)^def ([a-z]\w*_command)\(", path.read_text(encoding="utf-8"))
        module = import_module(f"tsugiki.cli.{path.stem}")
        assert [name for name in names if name not in OTHERS and getattr(module, name) not in listed] == []


def test_each_command_is_in_the_guide():
    guide = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert [name for name in root_command().commands if f"tsugiki {name}" not in guide] == []
