"""The page of Python functions has every public name, in both languages."""

import re
from pathlib import Path

import pytest

import tsugiki

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["api.md", "api.ja.md"])
def test_the_page_has_every_public_name(page: str):
    names = re.findall(r"^::: tsugiki\.(\w+)$", (DOCS / page).read_text(encoding="utf-8"), re.M)
    assert sorted(names) == sorted(tsugiki.__all__)
