"""The pages on preference tuning quote code that exists and print what it does; guides are equal in both languages."""

import doctest
import re
from pathlib import Path

import pytest

from tests.docs.test_guides_run import PAGES as GUIDES

ROOT = Path(__file__).resolve().parents[2]
DERIVATIONS = ("preference-derivation.md", "preference-derivation.ja.md")
CODE = ("src/tsugiki/preference/losses.py", "examples/preference_loop.py")


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", DERIVATIONS)
def test_the_session_prints_what_the_page_shows(page: str):
    blocks = re.findall(r"(?ms)^```python\n(>>> .*?)^```", text_of(page))
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, None, 0)
    differences: list[str] = []
    doctest.DocTestRunner().run(session, out=differences.append)
    assert "".join(differences) == ""
    assert len(session.examples) > 20


@pytest.mark.parametrize("page", DERIVATIONS)
def test_quoted_lines_are_those_of_the_source(page: str):
    source = {line.strip() for name in CODE for line in (ROOT / name).read_text(encoding="utf-8").splitlines()}
    blocks = re.findall(r"(?ms)^```python\n(?!>>> )(.*?)^```", text_of(page))
    quoted = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert [line for line in quoted if line not in source] == []
    assert len(quoted) > 10


def shown(block: str, is_screen: bool) -> object:
    """What is the same in both languages: of a screen, its figures but for times; of others, all but comments."""
    figures = re.sub(r"\d+(\+\d+){3}|before round 1", "", block)
    found = sorted(re.findall(r"\d+(?:[.,]\d+)*+(?!\d| s\b| 秒)", figures))
    return found if is_screen else re.sub(r"(?m)( {2,}|^)#.*", "", block)


@pytest.mark.parametrize("page", ["preference", "preference-derivation", *GUIDES])
def test_both_languages_have_the_same_blocks(page: str):
    one, other = (re.findall(r"(?ms)^```.*?^```", text_of(f"{page}{end}")) for end in (".md", ".ja.md"))
    for block, twin in zip(one, other, strict=True):
        is_screen = "\n$ tsugiki" in block  # in the page's language
        assert shown(block, is_screen) == shown(twin, is_screen)
