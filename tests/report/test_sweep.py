"""The page of several runs."""

from pathlib import Path
from typing import Any

import pytest

from tests.errors import refused
from tests.report.pages import assert_whole, evaluation, record
from tsugiki.report import sweep_sentence, write_sweep_page
from tsugiki.training import Point


def run_called(name: str, values: dict[str, float] | None = None, **changes: Any) -> Point:
    return Point(name, values or {}, record(config={"out": "c"}, **changes))


def test_the_page_has_the_table_the_curves_and_every_sample(tmp_path: Path):
    other = {
        "evaluations": [evaluation(0, 5.6), evaluation(40, 4.5)],
        "samples": [
            {"step": 0, "prompt": "庭の梅は", "text": "別の文。"},
            {"step": 9, "prompt": "雨", "text": "降る。"},
        ],
    }
    path = write_sweep_page(tmp_path, [run_called("LoRA <8>"), run_called("全体", **other)])
    assert path == tmp_path / "report.html"
    page = assert_whole(path.read_text(encoding="utf-8"))
    assert [[row[0] for row in table] for table in page.tables] == [["method", "LoRA <8>", "全体"]]
    for said in ("Best of 2: 全体", "40輪咲いた。", "別の文。", "降る。"):
        assert said in page.text, said
    assert page.tags.count("svg") == 1
    assert page.text.index("LoRA <8> · step 40, the end") < page.text.index("全体 · base model")


def test_a_grid_has_a_column_for_each_axis_and_a_curve_over_the_ranks(tmp_path: Path):
    grid = [run_called(f"r={rank} learning_rate=0.1", {"r": rank, "learning_rate": 0.1}) for rank in (1, 8)]
    page = assert_whole(write_sweep_page(tmp_path, grid).read_text(encoding="utf-8"))
    (table,) = page.tables
    assert [row[:2] for row in table] == [["r", "learning_rate"], ["1", "0.1"], ["8", "0.1"]]
    assert "learning rate" not in table[0], "the rate has one column"
    assert page.tags.count("svg") == 2


def test_intervals_are_drawn_only_for_a_few_runs(tmp_path: Path):
    for count, drawn in ((3, True), (4, False)):
        runs = [run_called(f"run {i}", samples=[]) for i in range(count)]
        content = write_sweep_page(tmp_path, runs).read_text(encoding="utf-8")
        assert ("fill-opacity" in content) is drawn
    with refused("cannot write"):
        write_sweep_page(tmp_path / "none", runs)


def points(losses: dict[int, float], documents: int = 12, spread: float = 0.0) -> list[Point]:
    """Points of these ranks; `spread` is how much the loss of a document differs between them at random."""
    found = []
    for rank, loss in losses.items():
        after = evaluation(40, loss, documents)
        for number, score in enumerate(after["documents"]):
            score[0] *= 1 + spread * (((number * 7 + rank * 3) % 11) / 5 - 1)
        after["nll"] = sum(score[0] for score in after["documents"])
        run = record(evaluations=[evaluation(0, 5.6), after])
        found.append(Point(name=f"r={rank}", values={"r": rank}, record=run))
    return found


@pytest.mark.parametrize(
    ("given", "said", "not_said"),
    [
        (points({1: 5.0, 4: 4.5, 16: 4.499}), ["Rank 4 is sufficient"], ["cannot be told", "still falls"]),
        (points({1: 5.0, 4: 4.5, 16: 4.0}), ["still falls up to rank 16"], ["sufficient", "cannot be told"]),
        (points({1: 4.52, 4: 4.5, 16: 4.499}, spread=0.05), ["Best of 3", "cannot be told"], ["4 is sufficient"]),
        (points({1: 4.5, 4: 4.5}, documents=1), ["from 1 held-out document."], ["Rank 1", "still falls"]),
        (points({1: 5.0, 3: 4.5}, documents=3, spread=0.2), ["ranks 1, 3", "only 3 documents"], ["still falls"]),
        (points({1: 5.0, 4: 4.5}, documents=3, spread=0.001), ["still falls up to rank 4"], ["cannot be told"]),
        (points({4: 4.5}), ["Best of 1: r=4"], ["ank 4", "cannot"]),
    ],
)
def test_a_sweep_concludes_only_what_its_intervals_tell(given: list[Point], said: list[str], not_said: list[str]):
    sentence = sweep_sentence(given)
    assert [words for words in (*said, *not_said) if words in sentence] == said, sentence
