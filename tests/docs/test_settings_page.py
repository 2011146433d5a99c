"""The guide to settings and the schema are those of today's fields: `python -m tests.docs.settings_page` makes them."""

from pathlib import Path

import pytest

from tests.docs.settings_page import files


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_page_is_current(path: Path):
    assert path.read_text(encoding="utf-8") == files()[path]
