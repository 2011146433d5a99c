"""Tables in the terminal."""

import pytest

from tsugiki.report.table import Table


def test_a_table_that_fits_looks_as_rich_prints_its_rows(capsys: pytest.CaptureFixture[str]):
    rows = [["a", "", "1 → 2"], ["銀河鉄道の夜", "[bold]x[/bold]", ""], ["", "two words", "3"], ["c", "d", ""]]
    table = Table(["name", "", "figures"], rows)
    table.print()
    assert capsys.readouterr().out.rstrip() == table.to_text()
    assert "銀河鉄道の夜" in table.to_text()


def test_a_table_without_rows_has_its_titles(capsys: pytest.CaptureFixture[str]):
    table = Table(["name", "figures"], [])
    table.print()
    assert capsys.readouterr().out.rstrip() == table.to_text()
