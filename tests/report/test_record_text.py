"""What a record says in words; `test_run.py` has the pages that show it.

Each thing that went wrong has one line that says what to do, and a run that went well has none.
"""

import re
from typing import Any

import pytest

from tests.report.pages import TRAINING, evaluation, record
from tsugiki.report import Note, Sentence, held_out_table, hints, run_notes, speed_text, summary_sentence
from tsugiki.training import RunRecord, wilson_interval
from tsugiki.training.record.result import FEWEST_CHARACTERS, summarise


def curve(*losses: float) -> list[Any]:
    return [evaluation(10 * number, loss) for number, loss in enumerate(losses)]


def of(data: dict[str, Any] | None = None, **changed: Any) -> list[Sentence]:
    base = record().data.model_dump()
    base["train"]["characters"] = 50_000
    base |= data or {}
    usual = {"evaluations": [evaluation(0, 6.0), evaluation(40, 5.0)], "samples": [], "data": base}
    return hints(record(**usual | {"validations": curve(6.0, 5.2, 5.1, 5.05, 5.04)} | changed))


def short_text() -> dict[str, Any]:
    return {"train": {**record().data.train.model_dump(), "characters": 900}}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "short": ({"data": short_text()}, "The training text is short (900 characters)"),
    "bytes": ({"data": {"piece_share": 0.7}}, "70% of the tokens are parts of characters"),
    "letters": ({"data": {"letter_share": 0.6}}, "60% of the tokens are single letters"),
    "unknown": ({"data": {"unknown_share": 0.02}}, "2.0% of the tokens are unknown"),
    "learned by heart": ({"validations": curve(6.0, 5.0, 5.2, 5.4, 5.6)}, "that was not trained on rose by 12.0%"),
    "without a validation text": ({"validations": [], "evaluations": curve(6.0, 5.0, 5.2, 5.4, 5.6)}, "After step 10"),
    "still falling": ({"validations": curve(6.0, 5.8, 5.6, 5.4, 5.1)}, "still falling at the last step"),
    "few steps": ({"training": {**TRAINING, "steps": 9}, "validations": []}, "had only 9 steps"),
    "nothing changed": ({"evaluations": curve(6.0, 5.999), "validations": curve(6.0, 5.999)}, "more --epochs change"),
    "known text": ({"evaluations": curve(6.0, 5.99), "validations": curve(6.0, 5.98, 5.99, 5.99)}, "-rate does not"),
    "worse": ({"evaluations": [evaluation(0, 6.0), evaluation(40, 6.3)]}, "worse than the base (+5.0%)"),
    "empty samples": (
        {"samples": [{"step": 40, "prompt": "a", "text": "\n"}, {"step": 40, "prompt": "b", "text": "c"}]},
        "For 1 of 2 prompts the model wrote nothing",
    ),
}


FACTS = {"short", "learned by heart", "without a validation text", "still falling", "few steps"}
"""The cases that are ordinary facts; the others are shown in a colour that warns."""


@pytest.mark.parametrize("case", CASES)
def test_what_went_wrong_has_one_line(case: str):
    changed, said = CASES[case]
    (hint,) = of(**changed)
    assert said in hint.text
    assert isinstance(hint, Note) == (case not in FACTS)


def test_a_part_of_the_update_is_no_rise():
    fell = {"validations": [], "evaluations": curve(6.0, 3.0, 2.0, 1.95, 4.0)}
    assert "rose" in of(**fell)[0].text
    assert of(**fell, strength=0.45) == []


def test_a_run_that_went_well_or_goes_on_has_none():
    assert of() == of(status="running", validations=curve(6.0, 5.0, 5.6)) == []


def answers(step: int, correct: int, counted: bool = True) -> dict[str, Any]:
    given = [{"source": f"{n}", "question": "q", "answer": "a", "correct": n < correct} for n in range(16)]
    share = {"share": correct / 16, "share_interval": wilson_interval(correct, 16)}
    return {"step": step, "counted": counted, "questions": 16, "correct": correct, **share, "answers": given}


def test_a_run_on_questions_that_answers_more_of_them_did_not_just_learn_by_heart():
    curves = {"validations": curve(6.0, 5.0, 5.2, 5.4, 5.6), "data": short_text()}
    assert len(of(**curves)) == 2
    assert of(**curves, answers=[answers(0, 1), answers(40, 9)]) == []
    for before, after in ((0, 0), (9, 1)):  # that the loss fell is no help
        assert "rose" in of(**curves, answers=[answers(0, before), answers(40, after)])[0].text
        few = {"training": {**TRAINING, "steps": 9}, "validations": [], "data": short_text()}
        assert "had only 9 steps" in of(**few, answers=[answers(0, before), answers(40, after)])[0].text


def test_no_two_hints_ask_for_the_opposite_of_each_other():
    few = {"training": {**TRAINING, "steps": 9}, "validations": []}
    worse = [evaluation(0, 6.0), evaluation(40, 6.3)]
    (short,) = of(**few, data=short_text())
    assert "more steps do not" in short.text
    (short,) = of(**few, data=short_text(), evaluations=[evaluation(0, 6.0), evaluation(40, 5.999)])
    assert "more steps do not" in short.text
    (result,) = of(**few, evaluations=worse)
    assert "worse than the base" in result.text
    falling = {"validations": curve(6.0, 5.8, 5.6, 5.4, 5.1)}
    assert ["worse" in hint.text for hint in of(**falling, evaluations=worse)] == [True]


def of_one_text(characters: int, held_out: int, **changed: Any) -> RunRecord:
    """A run whose held-out text is the end of its only document."""
    data = record().data.model_dump()
    data["held_out"] |= {"documents": 1, "characters": held_out, "same_text": True}
    score = {"characters": characters, "documents": [[500.0, 100, characters]]}
    both = [evaluation(step, loss, 1) | score for step, loss in ((0, 5.0), (40, 4.5))]
    both[1]["bits_per_char"] = 0.9 * both[0]["bits_per_char"]
    return record(**{"data": data, "evaluations": both} | changed)


def test_the_end_of_one_text_is_no_other_text():
    said = summary_sentence(of_one_text(478, 478))
    assert said.startswith("On the last 478 characters of the same text, the adapter needs 10.0 % fewer bits")
    assert said.endswith("; other texts were not measured.")
    assert summary_sentence(of_one_text(512, 1400)).startswith("On 512 characters of the end of the same text, the")


def test_texts_that_differ_by_more_than_chance_are_named():
    def said(gains: list[float], noise: float) -> str:
        """Of texts of six windows each, whose losses fall by these shares, more or less."""
        shift = [1 + noise * one for one in (-1.0, 1.0, -0.5, 0.5, -0.8, 0.8)]
        groups = [number for _window in shift for number in range(len(gains))]  # in turns
        before = [(500.0, 100, 160)] * len(groups)
        after = [(500.0 * (1 - gain) * part, 100, 160) for part in shift for gain in gains]
        both = [
            {"step": step, **summarise(one, groups, len(one), 0, 0, 0, True).model_dump()}
            for step, one in ((0, before), (40, after))
        ]
        data = record().data.model_dump()
        data["held_out"]["names"] = [f"text {number}" for number in range(len(gains))]
        return summary_sentence(record(evaluations=both, data=data))

    apart = said([0.06, 0.02, 0.09, 0.05], noise=0.01)
    assert apart.endswith(" The texts differ by more than chance: -9.0% on text 2, -2.0% on text 1.")
    assert apart.startswith("On 4 texts that it has not seen, the adapter needs 5.5 % fewer bits")
    assert "differ" not in said([0.06, 0.02, 0.09, 0.05], noise=0.1), "their windows vary as much"
    assert "differ" not in said([0.05, 0.05, 0.05], noise=0.01)
    assert "differ" not in said([0.05], noise=0.01)


def test_too_little_text_has_no_percentage():
    few = of_one_text(FEWEST_CHARACTERS - 1, 2000)
    assert f"has only {FEWEST_CHARACTERS - 1} characters, too few" in summary_sentence(few)
    assert "%" not in summary_sentence(few) + str(held_out_table(few).rows) + str([one.text for one in run_notes(few)])
    assert "10.0 % fewer" in summary_sentence(of_one_text(FEWEST_CHARACTERS, 2000))


def test_a_run_on_text_says_that_no_answers_were_taught():
    def said(**changed: Any) -> bool:
        return any("not what to answer" in note.text for note in run_notes(record(**changed)))

    assert said()
    assert not said(status="running")
    assert not said(answers=[answers(0, 0), answers(40, 0)])
    assert not said(data=record().data.model_dump() | {"learns_conversations": True})


LONG = {"characters": 1000}


def test_the_sentence_has_the_result_first_and_its_certainty():
    def said(documents: int, losses: tuple[float, float], **changed: Any) -> str:
        both = [evaluation(step, loss, documents) for step, loss in zip((0, 40), losses, strict=True)]
        return summary_sentence(record(**{"evaluations": both} | changed))

    few = said(2, (5.0, 4.5), evaluations=[evaluation(step, loss, 2) | LONG for step, loss in ((0, 5.0), (40, 4.5))])
    assert few == "On 2 texts that it has not seen, the adapter needs 10.0 % fewer bits per character."
    assert "needs 10.0 % more bits per character (95 % interval 10.0 to 10.0 %)." in said(5, (5.0, 5.5))
    assert "the adapter needs as many bits per character as the base." in said(5, (5.0, 5.0))
    assert "the model needs 10.0 % fewer" in said(5, (5.0, 4.5), config={"method": "full"})
    both = {"answers": [answers(0, 2), answers(40, 13)]}
    right = said(5, (5.0, 4.5), **both)
    assert "On 16 questions that it has not seen, the adapter gives exactly the expected answer to 13, the" in right
    assert re.search(r"base to 2 \(95 % interval of the difference \+\d+ to \+\d+ percentage points\)\.$", right)
    assert "due to chance" in said(5, (5.0, 4.5), answers=[answers(0, 2), answers(40, 3)])
    free = {"answers": [answers(0, 2, counted=False), answers(40, 13, counted=False)]}
    assert "On 5 questions that it has not seen, the adapter needs 10.0 % fewer" in said(5, (5.0, 4.5), **free)
    none = said(5, (5.0, 4.5), answers=[answers(0, 0), answers(40, 0)])
    assert (
        "On 16 questions that it has not seen, the adapter gives exactly the expected answer to 0, the base to" in none
    )


def test_the_speed_counts_tokens_outside_the_loss_too():
    run = record()
    run.training.tokens_per_second = 100.0
    run.data.target_tokens_per_epoch = run.data.tokens_per_epoch
    assert speed_text(run) == "100 tokens/s"
    run.data.tokens_per_epoch = 4 * run.data.target_tokens_per_epoch
    assert speed_text(run) == "400 tokens/s, 100 of them in the loss"
