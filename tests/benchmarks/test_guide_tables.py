"""The tables of the guides are those of the committed results."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.figures import CHANGES, changes_since, computer, zen
from benchmarks.guide_tables import fill_guide, guide_language, main, read_results
from benchmarks.speed.results import results_table

from tests.benchmarks.speed.test_results import example
from tests.errors import assert_refused
from tests.files import json_of

ROOT = Path(__file__).parents[2]


def test_results_are_read_back(tmp_path: Path):
    example().write(tmp_path)
    back = read_results(tmp_path / "results.json")
    assert results_table(back) == results_table(example())
    assert back.versions["torch"]
    assert_refused("nothing.json", read_results, tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    assert_refused("other.json", read_results, tmp_path / "other.json")


def test_a_table_of_a_guide_is_regenerated(tmp_path: Path):
    results = replace(example(), machine={"processor": "EPYC", "generation": "Zen 5", "threads": 2}, date="2026-12-01")
    results = replace(results, rows=[replace(results.rows[0], name="peft-bf16"), *results.rows[1:]])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.write(tmp_path / name)
    guide = tmp_path / "guide.ja.md"
    marker = "<!-- figures: a/results.json b/results.json -->"
    guide.write_text(f"前\n{marker}\nold\n<!-- end of figures -->\n後\n", encoding="utf-8")
    main(str(guide))
    text = guide.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| 最速の PEFT との比 | 限界比 | GB：PEFT、Tsugiki |" in text
    row = "| Zen 5, bf16 | gpt2-small | 205 | 205 | 512 | 2.50 [2.00, 4.33] | 51% | 2.00, 1.00 | 2026-12-01 |"
    assert text.count(row) == 2
    assert "· EPYC（Zen 5）、2 スレッド、2026-12-01、" in text
    assert text.startswith("前\n")
    assert text.endswith("後\n")
    assert fill_guide(text, tmp_path, "ja") == text
    alone = {"processor": "EPYC", "threads": 1, "c_functions": False}
    assert computer(alone) == "EPYC, 1 thread, without C functions"
    for name in ("a", "b"):
        replace(results, machine=alone).write(tmp_path / name)
    assert "· EPYC、1 スレッド、C の関数なし、2" in fill_guide(text, tmp_path, "ja")


def tables_in(guide: Path) -> set[str]:
    markers = re.findall(r"<!-- figures: (.+) -->", guide.read_text(encoding="utf-8"))
    return {file for marker in markers for file in marker.split()}


GUIDES = [guide for guide in sorted((ROOT / "docs").glob("*.md")) if tables_in(guide)]


def test_the_generation_of_a_processor():
    cpuinfo = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"
    amd = [
        zen(cpuinfo.format("AuthenticAMD", family, model)) for family, model in [(25, 1), (25, 17), (26, 2), (23, 49)]
    ]
    assert amd == ["Zen 3", "Zen 4", "Zen 5", None]
    assert zen(cpuinfo.format("GenuineIntel", 6, 207)) is zen("") is None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_guides_match_the_committed_results(guide: Path):
    text = guide.read_text(encoding="utf-8")
    assert fill_guide(text, guide.parent, guide_language(guide)) == text, (
        f"python -m benchmarks.guide_tables docs/{guide.name}"
    )


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_guides_show_every_committed_file_and_no_other(language: str):
    results = ROOT / "benchmarks" / "results"
    committed = {f"../benchmarks/results/{file.relative_to(results)}" for file in results.rglob("*.json")}
    assert set().union(*(tables_in(guide) for guide in GUIDES if guide_language(guide) == language)) == committed


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").rglob("*.json")), ids=lambda file: file.stem)
def test_no_committed_result_is_older_than_the_stated_number_of_changes(file: Path):
    values = json_of(file)
    assert re.fullmatch("[0-9a-f]{12}", values["commit"]), "measure what is committed"
    changes = changes_since(values["commit"], values["command"])
    if changes is None:
        pytest.skip("the history does not reach back to this result")
    assert changes <= CHANGES
