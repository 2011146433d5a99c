"""Each term has one spelling in all Japanese text of the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TERMS = {
    "フォルダー": "フォルダ",
    "プロセッサー": "プロセッサ",
    "ブラウザー": "ブラウザ",
    "パラメーター": "パラメータ",
    "メモリー": "メモリ",
    "オプティマイザ(?!ー)": "オプティマイザー",
    "計算機": "マシン",
    "ハブ": "Hub",
    "質問と答え": "質問と回答",
}
"""Spelling that is not used, as a pattern -> spelling."""
PATTERNS = (
    *("*.ja.md", "docs/*.ja.md", "examples/**/*.ja.md", "examples/**/*.ipynb", "mkdocs.yml"),
    *("src/tsugiki/serve/page/messages/*.ja.json", "src/tsugiki/language/**/*.po"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_term_has_one_spelling(pattern: str):
    files = {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in ROOT.glob(pattern)}
    assert files
    assert [f"{file}: {found}" for file, text in files.items() for found in re.findall("|".join(TERMS), text)] == []
