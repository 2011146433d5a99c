"""Figures: from seconds to the table, to the file and back, to the guides, to the plot."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tsugiki.bench.plot import plot
from tsugiki.bench.results import Results, collect, read_results
from tsugiki.bench.runner import Measured
from tsugiki.bench.table import fill_template, guide_language, main, markdown, page, results_table
from tsugiki.bench.work import Work
from tsugiki.errors import TsugikiError

ROOT = Path(__file__).parents[2]
LIMITS = {
    "fp32": {"tokens_per_second": 400.0, "causal_tokens_per_second": 450.0, "seconds": {}},
    "bf16": {"tokens_per_second": 1000.0, "causal_tokens_per_second": 1200.0, "seconds": {}},
}


def example(kind: str = "train") -> Results:
    measured = [
        Measured("chapter", {}, [10.0, 8.0, 16.0], 10**9, 3 * 10**9, 2 * 10**9),
        Measured("trl", problem="not installed (pip install 'tsugiki[bench]')"),
        Measured("tsugiki", {"base_dtype": "bf16"}, [4.0, 5.0, 2.0], 5 * 10**8, 15 * 10**8, 10**9),
        Measured("tsugiki-full-fp32", {}, [8.0], None, None, None),
    ]
    machine = {"processor": "EPYC", "threads": 2}
    return collect("train", Work("gpt2-small", 4, 512), measured, LIMITS, "tsugiki bench --rounds 3", machine)


def test_medians_ratios_and_shares():
    chapter, trl, ours, full = example().rows
    assert chapter.tokens_per_second == pytest.approx(2048 / 10)
    assert (chapter.slowest, chapter.fastest) == pytest.approx((2048 / 16, 2048 / 8))
    assert (chapter.ratio, ours.ratio) == pytest.approx((1, 10 / 4))
    assert chapter.share == pytest.approx(204.8 / 400), "float32 against the limit of float32"
    assert ours.share == pytest.approx(512 / 1000), "and what it chose for itself, bfloat16, against bfloat16's"
    assert full.share is None, "the limit is LoRA's"
    assert (trl.tokens_per_second, trl.ratio, trl.share) == (None, None, None)


def test_the_table():
    headers, rows = results_table(example())
    cells = [dict(zip(headers, row, strict=True)) for row in rows]
    assert cells[0] == {
        "": "chapter", "tokens/s": "205", "slowest to fastest": "128 – 256", "ratio": "1.00", "of the limit": "51%",
        "peak memory": "3.00 GB", "above the model": "2.00 GB", "set up as": "–",
    }  # fmt: skip
    assert cells[1]["set up as"] == "not installed (pip install 'tsugiki[bench]')"
    assert cells[1]["tokens/s"] == "–"
    assert cells[2]["set up as"] == "base_dtype bf16"
    assert [line[""] for line in cells[4:]] == ["limit, fp32", "limit, bf16"]
    assert cells[5]["tokens/s"] == "1,000"
    assert cells[5]["set up as"] == "causal half alone: 1,200"
    assert results_table(example(), "ja")[0][1] == "トークン/秒"


def test_markdown_lines_up():
    lines = markdown(results_table(example())).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1
    assert markdown((["a", "b"], [["x|y", "z"]])).splitlines()[-1] == r"| x\|y | z |"
    assert "tsugiki bench --rounds 3" in page(example())


def test_a_file_comes_back_as_it_was(tmp_path: Path):
    example().write(tmp_path)
    back = read_results(tmp_path / "results.json")
    assert results_table(back) == results_table(example())
    assert back.versions["torch"]
    with pytest.raises(TsugikiError, match="no results at"):
        read_results(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    with pytest.raises(TsugikiError, match="holds no results of this version"):
        read_results(tmp_path / "other.json")


def test_a_guide_is_filled_from_the_file(tmp_path: Path):
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
    assert fill_template(text, tmp_path, "ja") == text


@pytest.mark.parametrize("name", ["benchmarks.md", "benchmarks.ja.md"])
def test_the_guides_say_what_the_committed_files_say(name: str):
    guide = ROOT / "docs" / name
    text = guide.read_text(encoding="utf-8")
    assert fill_template(text, guide.parent, guide_language(guide)) == text, (
        "python -m tsugiki.bench.table docs/benchmarks.md docs/benchmarks.ja.md"
    )
    named = set(re.findall(r"<!-- figures: (\S+) -->", text))
    results = ROOT / "benchmarks" / "results"
    committed = {f"../benchmarks/results/{file.relative_to(results)}" for file in results.rglob("*.json")}
    assert named == committed, "every committed file stands in the guide, and only those"


def test_bars_are_as_long_as_their_figures():
    svg = plot(example())
    ElementTree.fromstring(svg)
    assert "#00fe" not in svg, "every colour is one of the page's"
    assert "prefers-color-scheme: dark" in svg
    bars = [
        float(right) - float(left)
        for left, right in re.findall(
            r'd="M ([\d.]+) [\d.]+ \s*L ([\d.]+) [^"]*" clip-path[^>]*fill: var\(--s[18]\)', svg
        )
    ]
    assert [bar / bars[0] for bar in bars] == pytest.approx([1, 10 / 4, 10 / 8], rel=1e-3)
    for text in ("chapter", "tsugiki", "limit bf16", "tokens a second"):
        assert f">{text}</text>" in svg
    assert "trl" not in svg
    assert plot(example()) == svg
