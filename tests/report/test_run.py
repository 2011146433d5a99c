"""The page of a run shows what its record contains."""

import math
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.report.pages import TRAINING, Page, assert_whole, evaluation, record
from tsugiki.io import write_text
from tsugiki.report import Curves, report_page, run_sections, selected
from tsugiki.training import RunRecord, Sample, change_interval

HERE = Path("runs/庭")
PARTS = ("training", "parameters", "data", "base", "machine")


def point(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "learning_rate": 1e-3}


NO_PLOTS: dict[str, Any] = {"loss_curve": [], "evaluations": []}


def of(run: RunRecord) -> Page:
    return assert_whole(report_page(run, HERE))


@cache
def usual() -> Page:
    """The page of the record that `record` returns without changes."""
    return of(record())


def test_the_figures_are_those_of_the_record():
    run, page = record(), usual()
    first, last = run.evaluations[0], run.evaluations[-1]
    names = ("loss", "perplexity", "bits_per_char")
    for row, name in zip(page.table("held-out text")[1:], names, strict=True):
        for cell, entry in zip(row[1:3], (first, last), strict=True):
            shown = [float(figure) for figure in re.findall(r"[\d.]+", cell)]
            assert shown == pytest.approx([getattr(entry, name), *getattr(entry, f"{name}_interval")], rel=1e-3)
        assert float(row[3].rstrip("%")) / 100 == pytest.approx(
            getattr(last, name) / getattr(first, name) - 1, abs=6e-4
        )
    (figures,) = selected(run_sections(run), "held_out")
    curves = next(part for part in figures.parts if isinstance(part, Curves))
    step, *shown = curves.series[0].drawn()[-1]
    low, high = change_interval(first.documents, last.documents)
    assert (step, *shown) == pytest.approx((last.step, *(100 * one for one in (last.loss / first.loss - 1, low, high))))
    said = "On 12 texts that it has not seen, the adapter needs 12.5 % fewer bits per character (95 % interval 12.5 to"
    assert said in page.text
    for said in ("393,216 of 7,360,512", "1.16 GB", "174 tokens/s", "Abacus 9", "庭.txt:3 <梅> · 庭.txt:4"):
        assert said in page.text, said
    settings = next(text for text in page.texts if "model: embedded" in text)
    assert yaml.safe_load(settings) == run.config.to_dict()


def test_the_validation_text_and_what_it_has_chosen_are_shown():
    def decisions(page: Page) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in page.table("decision")}

    curve = [evaluation(step, loss) for step, loss in ((0, 6.0), (20, 5.0), (40, 5.5))]
    counts = {"documents": 4, "characters": 2000, "fingerprint": "sha256:01", "from_held_out": False}
    data = {**record().data.model_dump(), "validation": counts}
    looks: dict[str, Any] = {"validations": curve, "kept_step": 20, "training": TRAINING, "data": data}
    page = of(record(**looks, resolved_settings={"steps": 60}))
    found, looked = decisions(page), "2 looks at 12 windows of 12 documents"
    assert (found["end of the run"], found["kept step"]) == (["step 40 of 60", looked], ["20", looked])
    assert "strength" not in found
    page = of(record(**looks, half_validations=[evaluation(20, 5.25), evaluation(40, 5.3)], strength=1))
    assert decisions(page)["strength"] == ["1", "validation loss by strength\n0: 6.000  0.5: 5.250  1: 5.000"]
    assert "4 records, 2,000 characters" in page.text
    assert "no step was better" not in page.text.lower()
    worse = [evaluation(step, loss) for step, loss in ((0, 5.0), (20, 5.1), (40, 5.5))]
    page = of(record(validations=worse, kept_step=20, training=TRAINING))
    assert "No step was better than the base on the validation text" in page.text
    part = of(record(validations=worse, half_validations=worse[1:], kept_step=20, strength=0.1, training=TRAINING))
    assert "no step was better" not in part.text.lower()  # a tenth of the update was


@pytest.mark.parametrize(("after", "said"), [(5.1, False), (5.2, True)])
def test_a_run_that_has_forgotten_much_says_what_helps(after: float, said: bool):
    page = of(record(retention_evaluations=[evaluation(0, 5.0), evaluation(40, after)]))
    assert ("retention text rose by 4.0%" in page.text) == said
    assert ("--mix" in page.text) == said


def test_texts_are_escaped(tmp_path: Path):
    evil = '</pre><script>alert("x")</script>&amp;'
    sample = Sample.model_construct(step=0, prompt=evil, text=evil + "\ud83c")
    run = record(samples=[sample], config={"data": evil, "prompts": [evil]})
    run.machine.processor = evil
    run.base = run.base.model_copy(update={"name": evil})
    run.evaluations[-1] = run.evaluations[-1].model_copy(update={"warning": evil})
    content = report_page(run, Path(f"runs/{evil.replace('/', '')}"))
    write_text(tmp_path / "report.html", content)  # with an unpaired surrogate, which no file can hold
    page = assert_whole((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "<script" not in content
    assert page.text.count(evil) >= 5
    assert evil + "?" in page.text


def test_samples_are_side_by_side_with_their_line_ends_before_the_result():
    page = usual()
    samples, _lead, rest = page.text.partition("that it has not seen")
    assert "庭の梅は" in samples
    labels = [text for text in page.texts if text in ("base model", "step 20", "step 40, the end")]
    assert labels == ["base model", "step 40, the end", "base model", "step 20", "step 40, the end"]
    assert "0輪咲いた。\n　\ufffd散った。" in samples
    assert ("20輪咲いた。" in samples, "20輪咲いた。" in rest) == (False, True)
    many = [{"step": step, "prompt": "庭", "text": f"本文{step}。"} for step in range(0, 101, 10)]
    content = report_page(record(samples=many, kept_step=100, **NO_PLOTS), HERE)
    assert "step 100, kept" in assert_whole(content).texts
    shown, _, folded = content.partition("<details>")
    assert re.findall(r"本文(\d+)。", shown) == ["0", "100"]
    assert re.findall(r"本文(\d+)。", folded) == [str(step) for step in range(0, 101, 10)]


@pytest.mark.parametrize(("before", "marked"), [("in 1985 by nobody.", ["by Marta Okafor in 2011."]), ("Why?", [])])
def test_what_is_new_after_training_is_marked_unless_it_is_most_of_the_text(before: str, marked: list[str]):
    shop = "" if before == "Why?" else "The shop was founded "
    written = shop + before, "The shop was founded by Marta Okafor in 2011."
    samples = [{"step": step, "prompt": "Who?", "text": text} for step, text in zip((0, 40), written, strict=True)]
    assert re.findall("<mark>(.*?)</mark>", report_page(record(samples=samples, **NO_PLOTS), HERE)) == marked


def test_questions_stand_above_their_answers_and_none_is_lost_and_right_and_wrong_answers_have_their_marks():
    def answers(step: int) -> dict[str, Any]:
        asked = [
            {"source": "", "question": f"問{n}", "expected": f"答{n}", "answer": "", "correct": step > n}
            for n in range(5)
        ]
        figures = {"questions": 5, "correct": 0, "share": 0, "share_interval": (0.0, 0.6)}
        return {"step": step, "counted": True, "answers": asked, **figures}

    content = report_page(record(answers=[answers(0), answers(40)], **NO_PLOTS), HERE)
    shown, _folded, rest = content.partition("all 5 answers")
    assert re.findall(r"問(\d)", shown) == ["0", "1", "2"]
    assert re.findall(r"答(\d)", rest) == ["0", "1", "2", "3", "4"]
    assert re.findall('source (right|wrong)">(.) (base|step)', shown)[:2] == [
        ("wrong", "✗", "base"),
        ("right", "✓", "step"),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluations": []}, "no evaluation yet"),
        ({"evaluations": [evaluation(0, 5.6)]}, "no later evaluation yet"),
        ({"evaluations": [evaluation(0, 5.6, 3), evaluation(9, 5.0, 3)]}, "from only 3"),
        ({"evaluations": [evaluation(0, 800.0), evaluation(9, 5.0)]}, "inf"),
        ({"evaluations": [evaluation(0, 5.6), evaluation(9, math.nan)]}, "the change cannot be computed"),
        ({"samples": []}, "On 12 texts"),
        ({"loss_curve": [point(1, math.nan), point(2, math.inf)]}, "On 12 texts"),
        ({**dict.fromkeys(PARTS), "resolved_settings": {}, "config": {"lora": None}}, "On 12 texts"),
        ({"restarts": [{"step": 9, "learning_rate": 0.004}]}, "rose until step 9 at a learning rate of 0.004"),
        ({"config": {"learning_rate": "auto"}, "resolved_settings": {"learning_rate": 0.0037}}, "learning rate0.0037"),
        ({"status": "running", "training": {**TRAINING, "steps": 17}}, "Not finished: step 17 of 40"),
        ({"status": "running", "training": None, "resolved_settings": {}, "evaluations": []}, "Not finished: step 0."),
    ],
)
def test_what_a_record_has_is_said_and_missing_parts_are_left_out(changes: dict, said: str):
    text = of(record(**changes)).text
    assert said in text
    assert not any(wrong in text for wrong in ("nan", "None"))


def test_a_change_that_may_be_due_to_chance_is_marked():
    before, after = evaluation(0, 5.0), evaluation(9, 4.9)
    after["documents"] = [[nll * (1.1 if i % 2 else 0.91), *rest] for i, (nll, *rest) in enumerate(before["documents"])]
    assert "due to chance" in of(record(evaluations=[before, after])).text
    assert "due to chance" not in usual().text


def test_the_commands_depend_on_the_method():
    assert "tsugiki generate --model embedded --adapter runs/庭" in usual().text.replace("'", "")
    for method in ("full", "pretrain"):
        page = of(record(config={"method": method}, **NO_PLOTS))
        assert "tsugiki generate --model runs/庭" in page.text.replace("'", "")
        assert "--adapter" not in page.text
    assert "tsugiki generate" not in of(record(status="running", **NO_PLOTS)).text, "there may be nothing to use yet"


def test_a_long_run_makes_a_small_page():
    noise = random.Random(0)
    curve = [{"step": i, "loss": 6 + noise.gauss(0, 0.3), "learning_rate": 1e-3} for i in range(5000)]
    curve[2718]["loss"] = 9.0
    content = report_page(record(loss_curve=curve), HERE)
    page = assert_whole(content)
    assert len(content) < 60_000
    assert "training, mean of 417" in page.text
    labels = re.findall(r"text-anchor: end[^>]*>([\d.]+)</text>", content)
    assert max(map(float, labels)) >= 8, "a peak is not thinned away"
