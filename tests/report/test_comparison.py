"""The page of several runs."""

from pathlib import Path

import pytest

from tests.report.pages import assert_whole, evaluation, record
from tsugiki.errors import TsugikiError
from tsugiki.report import RankCurves, Series, Table, sweep_sentence, write_comparison
from tsugiki.training import Point

ROWS = [["LoRA <8>", "4.955\n[4.8, 5.1]", "135,168"], ["全体", "4.8", "6,967,296"]]
TABLE = Table(["run", "bits a character", "parameters"], ROWS)


def test_the_page_has_the_table_the_curves_and_every_sample(tmp_path: Path):
    other = record(
        evaluations=[evaluation(0, 5.6), evaluation(40, 4.5)],
        samples=[{"step": 0, "prompt": "庭の梅は", "text": "別の文。"}, {"step": 9, "prompt": "雨", "text": "降る。"}],
    )
    plot = RankCurves("Loss by rank", [Series("学習率 1e-3", [(1, 5.0), (8, 4.5)])])
    runs = [("LoRA <8>", record()), ("全体", other)]
    path = write_comparison(tmp_path, "Two <runs>", "One is better.", TABLE, runs, [plot])
    assert path == tmp_path / "report.html"
    page = assert_whole(path.read_text(encoding="utf-8"))
    assert page.tables == [[TABLE[0], *TABLE[1]]]
    for said in ("Two <runs>", "One is better.", "学習率 1e-3", "40輪咲いた。", "別の文。", "降る。"):
        assert said in page.text, said
    assert page.tags.count("svg") == 2
    assert page.text.index("LoRA <8> · step 40, the end") < page.text.index("全体 · base model")


def test_intervals_are_drawn_only_for_a_few_runs(tmp_path: Path):
    for count, drawn in ((3, True), (4, False)):
        runs = [(f"run {i}", record(samples=[])) for i in range(count)]
        content = write_comparison(tmp_path, "t", "l", TABLE, runs).read_text(encoding="utf-8")
        assert ("fill-opacity" in content) is drawn
    runs = [("a", record(evaluations=[], samples=[]))] * 2
    assert assert_whole(write_comparison(tmp_path, "t", "l", TABLE, runs).read_text(encoding="utf-8"))
    with pytest.raises(TsugikiError, match="cannot write"):
        write_comparison(tmp_path / "none", "t", "l", TABLE, runs)


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
