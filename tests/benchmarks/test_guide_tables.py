"""The tables of the guides are those of the committed results."""

import json
import re
from pathlib import Path

import pytest
from benchmarks.figures import CHANGES, changes_since
from benchmarks.guide_tables import fill_guide, guide_language, main, read_results
from benchmarks.speed.results import results_table

from tests.benchmarks.speed.test_results import example
from tsugiki.errors import TsugikiError

ROOT = Path(__file__).parents[2]


def test_results_are_read_back(tmp_path: Path):
    example().write(tmp_path)
    back = read_results(tmp_path / "results.json")
    assert results_table(back) == results_table(example())
    assert back.versions["torch"]
    with pytest.raises(TsugikiError, match="nothing.json"):
        read_results(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    with pytest.raises(TsugikiError, match="other.json"):
        read_results(tmp_path / "other.json")


def test_a_table_of_a_guide_is_regenerated(tmp_path: Path):
    example().write(tmp_path)
    guide = tmp_path / "guide.ja.md"
    guide.write_text("前\n<!-- figures: results.json -->\nold\n<!-- end of figures -->\n後\n", encoding="utf-8")
    main(str(guide))
    text = guide.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| chapter | 205 | 128 – 256 | 1.00 |" in text
    assert "トークン/秒" in text
    assert text.startswith("前\n")
    assert text.endswith("後\n")
    assert fill_guide(text, tmp_path, "ja") == text


GUIDES = (
    "benchmarks",
    "commands",
    "comparing",
    "data",
    "preference",
    "reward",
    "training-evidence",
    "memory",
    "serving",
)


def tables_in(name: str) -> set[str]:
    return set(re.findall(r"<!-- figures: (\S+) -->", (ROOT / "docs" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", [f"{guide}{language}" for guide in GUIDES for language in (".md", ".ja.md")])
def test_the_guides_match_the_committed_results(name: str):
    guide = ROOT / "docs" / name
    text = guide.read_text(encoding="utf-8")
    assert fill_guide(text, guide.parent, guide_language(guide)) == text, (
        f"python -m benchmarks.guide_tables docs/{name}"
    )


@pytest.mark.parametrize("language", [".md", ".ja.md"])
def test_the_guides_show_every_committed_file_and_no_other(language: str):
    results = ROOT / "benchmarks" / "results"
    committed = {f"../benchmarks/results/{file.relative_to(results)}" for file in results.rglob("*.json")}
    assert set().union(*(tables_in(f"{guide}{language}") for guide in GUIDES)) == committed


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").rglob("*.json")), ids=lambda file: file.stem)
def test_no_committed_result_is_older_than_the_stated_number_of_changes(file: Path):
    values = json.loads(file.read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{12}", values["commit"]), "measure what is committed"
    changes = changes_since(values["commit"], values["command"])
    if changes is None:
        pytest.skip("the history does not reach back to this result")
    assert changes <= CHANGES
