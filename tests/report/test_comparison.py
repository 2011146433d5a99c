"""The page of several runs."""

from pathlib import Path

import pytest

from tests.report.pages import assert_whole, evaluation, record
from tsugiki.errors import TsugikiError
from tsugiki.report.comparison import write_comparison
from tsugiki.report.plots import Series, over_ranks

TABLE = (
    ["run", "bits a character", "parameters"],
    [["LoRA <8>", "4.955\n[4.8, 5.1]", "135,168"], ["全体", "4.8", "6,967,296"]],
)


def test_the_page_has_the_table_the_curves_and_every_sample(tmp_path: Path):
    other = record(
        evaluations=[evaluation(0, 5.6), evaluation(40, 4.5)],
        samples=[{"step": 0, "prompt": "庭の梅は", "text": "別の文。"}, {"step": 9, "prompt": "雨", "text": "降る。"}],
    )
    plot = over_ranks([Series("学習率 1e-3", [(1, 5.0), (8, 4.5)])], "Loss by rank")
    runs = [("LoRA <8>", record()), ("全体", other)]
    path = write_comparison(tmp_path, "Two <runs>", "One is better.", TABLE, runs, [plot])
    assert path == tmp_path / "report.html"
    page = assert_whole(path.read_text(encoding="utf-8"))
    assert page.tables == [[TABLE[0], *TABLE[1]]]
    for said in ("Two <runs>", "One is better.", "学習率 1e-3", "40輪咲いた。", "別の文。", "降る。"):
        assert said in page.text, said
    assert page.tags.count("svg") == 2
    assert page.text.index("LoRA <8> · step 40, the end") < page.text.index("全体 · before the first step")


def test_intervals_are_drawn_only_for_a_few_runs(tmp_path: Path):
    for count, drawn in ((3, True), (4, False)):
        runs = [(f"run {i}", record(samples=[])) for i in range(count)]
        content = write_comparison(tmp_path, "t", "l", TABLE, runs).read_text(encoding="utf-8")
        assert ("fill-opacity" in content) is drawn
        assert assert_whole(content).text.count("run ") >= count


def test_runs_without_evaluations(tmp_path: Path):
    runs = [("a", record(evaluations=[], samples=[])), ("b", record(evaluations=[], samples=[]))]
    assert assert_whole(write_comparison(tmp_path, "t", "l", TABLE, runs).read_text(encoding="utf-8"))


def test_a_missing_folder(tmp_path: Path):
    with pytest.raises(TsugikiError, match="cannot write"):
        write_comparison(tmp_path / "none", "t", "l", TABLE, [("a", record())])
