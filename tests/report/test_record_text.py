"""What a record says in words; `test_run.py` has the pages that show it.

Each thing that went wrong has one line that says what to do, and a run that went well has none.
"""

from typing import Any

import pytest

from tests.report.pages import evaluation, record
from tsugiki.report import hints, speed_text

TRAINING = {"steps": 40, "loss": 5.0, "tokens": 9, "seconds": 1.0, "tokens_per_second": 9.0, "peak_memory": 0}


def curve(*losses: float) -> list[Any]:
    return [evaluation(10 * number, loss) for number, loss in enumerate(losses)]


def of(data: dict[str, Any] | None = None, held_out: dict[str, Any] | None = None, **changed: Any) -> list[str]:
    base = record().data.model_dump()
    base["train"]["characters"] = 50_000
    base |= data or {}
    base["held_out"] |= held_out or {}
    usual = {
        "status": "finished",
        "training": TRAINING,
        "resolved_settings": {"steps": 40},
        "evaluations": [evaluation(0, 6.0), evaluation(40, 5.0)],
        "validations": curve(6.0, 5.2, 5.1, 5.05, 5.04),
        "samples": [],
        "data": base,
    }
    return hints(record(**usual | changed))


def short_text() -> dict[str, Any]:
    return {"train": {**record().data.train.model_dump(), "characters": 900}}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "short": ({"data": short_text()}, "The training text is short (900 characters)"),
    "bytes": ({"data": {"piece_share": 0.7}}, "70% of the tokens are parts of characters"),
    "unknown": ({"data": {"unknown_share": 0.02}}, "2.0% of the tokens are unknown"),
    "learned by heart": (
        {"validations": curve(6.0, 5.0, 5.2, 5.4, 5.6)},
        "After step 10, the loss on text that was not trained on rose by 12.0%",
    ),
    "learned by heart, without a validation text": (
        {"validations": [], "evaluations": curve(6.0, 5.0, 5.2, 5.4, 5.6)},
        "After step 10",
    ),
    "still falling": ({"validations": curve(6.0, 5.8, 5.6, 5.4, 5.1)}, "still falling at the last step"),
    "few steps": ({"training": {**TRAINING, "steps": 9}, "validations": []}, "had only 9 steps"),
    "nothing changed": (
        {"evaluations": [evaluation(0, 6.0), evaluation(40, 5.999)], "validations": curve(6.0, 5.999)},
        "more --epochs change more",
    ),
    "like what the base knows": (
        {"evaluations": [evaluation(0, 6.0), evaluation(40, 5.99)], "validations": curve(6.0, 5.98, 5.99, 5.99)},
        "a higher --learning-rate does not",
    ),
    "worse": ({"evaluations": [evaluation(0, 6.0), evaluation(40, 6.3)]}, "worse than the base (+5.0%)"),
    "empty samples": (
        {"samples": [{"step": 40, "prompt": "a", "text": "\n"}, {"step": 40, "prompt": "b", "text": "c"}]},
        "For 1 of 2 prompts the model wrote nothing",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_went_wrong_has_one_line(case: str):
    changed, said = CASES[case]
    (hint,) = of(**changed)
    assert said in hint


def test_a_run_that_went_well_has_none():
    assert of() == []


def test_a_run_that_goes_on_is_not_judged():
    assert of(status="running", validations=curve(6.0, 5.0, 5.6)) == []


def test_the_speed_counts_tokens_outside_the_loss_too():
    run = record()
    assert run.training
    assert run.data
    run.training.tokens_per_second = 100.0
    run.data.target_tokens_per_epoch = run.data.tokens_per_epoch
    assert speed_text(run) == "100 tokens/s"
    run.data.tokens_per_epoch = 4 * run.data.target_tokens_per_epoch
    assert speed_text(run) == "400 tokens/s, 100 of them in the loss"
