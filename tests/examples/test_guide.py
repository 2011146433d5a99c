"""The guides show the output of the scripts, and both languages have the same content."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import train_tiny

from tests.examples.conftest import FOLDER

DOCS = FOLDER.parents[1] / "docs"
GUIDES = [DOCS / "from-scratch.md", DOCS / "from-scratch.ja.md"]


@pytest.mark.parametrize("script", ["lora", "linear", "attention", "gpt2", "audit"])
def test_the_guides_show_the_output_as_it_is_printed(script: str, capsys: pytest.CaptureFixture[str]):
    import_module(script).main()
    printed = capsys.readouterr().out
    for guide in GUIDES:
        assert f"```\n$ python examples/from_scratch/{script}.py\n{printed}```" in guide.read_text(encoding="utf-8")


def test_the_short_training_changes_a_and_b_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(train_tiny, "STEPS", 2)
    train_tiny.main()
    count, first, last, *ends = capsys.readouterr().out.splitlines()
    assert float(last.split()[-1]) < float(first.split()[-1])
    assert ends == ["frozen weights are bit-identical: True", "every B has changed from zero: True"]
    for guide in GUIDES:
        assert "\n".join(["train_tiny.py", count, first]) in guide.read_text(encoding="utf-8")


def test_the_tables_of_both_guides_have_the_same_figures():
    texts = (guide.read_text(encoding="utf-8") for guide in GUIDES)
    figures = [[sorted(re.findall(r"\d[\d,.]*\d{2}", row)) for row in rows_of(text)] for text in texts]
    assert figures[0] == figures[1]


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_library_has_the_names_that_the_last_table_compares_with(guide: Path):
    rows = rows_of(guide.read_text(encoding="utf-8").split("\n## 8. ")[1])
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert len(names) > 5
    source = "".join(path.read_text(encoding="utf-8") for path in (FOLDER.parents[1] / "src/tsugiki/lora").glob("*.py"))
    assert [name for name in names if not re.search(rf"(?m)^\s*(?:class |def |){name}\b[(:]", source)] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_guides_show_code_as_it_is_in_the_scripts(guide: Path):
    scripts = {path.name: path.read_text(encoding="utf-8").splitlines() for path in FOLDER.glob("*.py")}
    sections = re.split(r"(?m)^## ", guide.read_text(encoding="utf-8"))
    shown = {re.search(r"`(\w+\.py)`", section)[1]: section for section in sections if "```python\n" in section}  # type: ignore[index]
    assert len(shown) == 4
    for script, section in shown.items():
        block = section.split("```python\n")[1].split("```")[0]
        lines = iter(scripts[script])
        assert all(line in lines for line in block.splitlines()), script  # in this order; others may lie between
