"""What a run chooses, and that a resumed run keeps it."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.errors import refused
from tests.runs import assert_resumes, run_config
from tests.tiny import grafted, tiny_model
from tsugiki import LoraConfig
from tsugiki.lora import LoraLinear
from tsugiki.model import features, oriented
from tsugiki.training import RunConfig, automatic_learning_rate, choices_for, train, weight_gain
from tsugiki.training.run import prepare as run
from tsugiki.training.run.train_steps import diverges


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "data": "d", "out": "o", **changes})


def rate(width: int = 2000, steps: int = 1000, tokens: int = 8192, gain: float | None = None, **changes: Any) -> float:
    return automatic_learning_rate(config(**changes), width, steps, tokens, gain)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # 5e-4 (2000 / width)^0.781, computed by hand; 1.5 times that in short runs
        ({"width": 256, "steps": 200}, 2.5e-3),
        ({"width": 256, "steps": 100}, 3.7e-3),
        ({"width": 8, "steps": 10}, 1e-2),  # the highest
        # steps of few tokens
        ({"tokens": 512}, 2.5e-4),
        ({"tokens": 2048}, 5e-4),
        # at most 5e-4 gain^2.5, computed by hand, and the rate by the width, 1.2e-3, if this is lower
        ({"width": 640, "gain": 4.0}, 1.2e-3),
        ({"width": 640, "gain": 1.2}, 7.9e-4),
        ({"width": 640, "gain": 0.9}, 3.8e-4),
        ({"width": 640, "gain": 0.01}, 2e-4),
        # by alpha and the method; rsLoRA multiplies the update by sqrt(r) more than LoRA does
        ({"lora": {"lora_alpha": 64}}, 2.5e-4),
        ({"method": "rslora", "lora": {"r": 16, "lora_alpha": 8}}, 5e-4),
        ({"method": "full"}, 5e-5),
        ({"method": "full", "width": 512}, 1.4e-4),
        ({"method": "full", "width": 511}, 4.8e-4),  # a third
        ({"method": "pissa"}, 1.7e-4),
        ({"method": "ia3"}, 3e-3),
        ({"method": "prompt-tuning"}, 3e-2),
    ],
)
def test_the_learning_rate_follows_from_the_model_the_run_and_the_method(given: dict[str, Any], expected: float):
    assert rate(**given) == expected


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (1, {}, (2, 3)),
        (10, {}, (2, 15)),
        (100, {}, (3, 102)),
        (5000, {}, (16, 939)),
        (100, {"epochs": 6}, (3, 204)),
        (100, {"epochs": 0.5}, (3, 17)),
        (100, {"max_steps": 7}, (3, 7)),
        (100, {"max_steps": 7, "batch_size": 5}, (5, 7)),
    ],
)
def test_a_run_has_about_a_hundred_steps(rows: int, given: dict[str, Any], expected: tuple[int, int]):
    chosen = choices_for(config(learning_rate=0.5, **given), tiny_model("gpt2"), rows, 512)
    assert (chosen.batch_size, chosen.steps, chosen.learning_rate) == (*expected, 0.5)


@pytest.mark.parametrize(
    ("rows", "has_validation", "given", "expected"),
    [
        (1, True, {}, (40, True)),
        (5, True, {}, (120, True)),
        (100, True, {}, (240, True)),
        (5000, True, {}, (939, True)),
        (1, False, {}, (40, False)),
        (5, False, {}, (60, False)),
        (100, False, {}, (102, False)),
        (5, True, {"keep": "last"}, (60, False)),
        (5, True, {"lr_scheduler_type": "cosine"}, (60, False)),
        (5, True, {"epochs": 3}, (9, False)),
        (5, True, {"max_steps": 50}, (50, False)),
        (5, True, {"preference": "dpo"}, (9, False)),
    ],
)
def test_questions_have_as_many_steps_as_their_validation_text_asks_for(
    rows: int, has_validation: bool, given: dict[str, Any], expected: tuple[int, bool]
):
    chosen = choices_for(
        config(learning_rate=0.5, **given),
        tiny_model("gpt2"),
        rows,
        512,
        learns_answers=True,
        has_validation=has_validation,
    )
    assert (chosen.steps, chosen.is_open) == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_gain_is_that_of_the_weights_without_biases_and_factors(kind: str):
    model = tiny_model(kind)
    assert weight_gain(model) is None, "no layer has factors"
    grafted(model, LoraConfig(r=4, target_modules="all-linear"))
    layers = [layer.base_layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    norms = [float(oriented(layer).norm() / math.sqrt(features(layer)[1])) for layer in layers]
    expected = statistics.geometric_mean(norms)
    assert weight_gain(model) == pytest.approx(expected, rel=0.1)
    for layer in layers:
        layer.weight.data *= 3
    assert weight_gain(model) == pytest.approx(3 * expected, rel=0.1)


def test_each_process_has_a_row_of_a_step():
    few = choices_for(config(), tiny_model("gpt2"), 10, 512, processes=4)
    assert (few.batch_size, few.steps) == (4, 9)


def test_minutes_become_steps_of_the_rows_that_fit_into_them():
    given, model = config(minutes=5), tiny_model("gpt2")
    chosen = choices_for(given, model, 100, 512, {}, lambda: 450)
    assert (chosen.batch_size, chosen.steps) == (4, 112)
    again = choices_for(given, model, 100, 512, {"steps": 112, "batch_size": 4}, None)  # nothing is measured
    assert (again.batch_size, again.steps) == (4, 112)
    twenty_epochs = choices_for(given, model, 10, 512, {}, lambda: 450)
    assert twenty_epochs.steps * twenty_epochs.batch_size == 200


def test_a_run_records_and_resumes_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "rows_in_time", lambda *_: 12)  # six steps of two rows
    automatic = {"batch_size": "auto", "learning_rate": "auto", "max_steps": None}
    record = assert_resumes(train, run_config(tmp_path, minutes=5, **automatic), 3)
    assert record.training.steps == record.resolved_settings["steps"] == 6
    assert record.config.learning_rate == "auto"
    assert (record.chosen("batch_size"), record.chosen("learning_rate")) == (2, record.loss_curve[0].learning_rate)


def test_minutes_that_are_over_before_the_first_step_end_with_one_line(tmp_path: Path):
    with refused("minutes: the time is over before the first step"):
        train(run_config(tmp_path, max_steps=None, minutes=1e-6))
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_begins_again_with_a_third_of_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.choose.choices.automatic_learning_rate", lambda *_: 30.0)
    monkeypatch.setattr("tsugiki.training.run.train_steps._RISE", 1.001)  # the loss of a tiny model cannot rise much
    lora = {"lora_dropout": 0.0, "target_modules": ["c_attn", "c_proj"]}
    settings = {"learning_rate": "auto", "max_steps": 10, "batch_size": 4, "lora": lora, "prompts": []}
    record = assert_resumes(train, run_config(tmp_path, **settings), 5)
    rates = [restart.learning_rate for restart in record.restarts]
    assert rates == [30.0, 10.0]
    assert record.chosen("learning_rate") == 3.3
    assert [point.step for point in record.loss_curve] == list(range(1, 11))
    steps = [entry.step for entry in record.evaluations]
    assert steps == sorted(set(steps))
    assert math.isclose(record.loss_curve[0].learning_rate, 3.3)
    given = run_config(tmp_path, "given", **{**settings, "learning_rate": 30.0})
    assert not train(given).restarts


@pytest.mark.parametrize(
    ("losses", "rows", "expected"),
    [
        ([4.0, 4.1, 3.9, 4.9, 5.0, 4.9], 4, True),
        ([4.0, 4.1, 3.9, 4.7, 4.8, 4.7], 4, False),
        ([4.0, 4.1, 3.9, 9.0, 9.0], 4, False),  # too few to tell
        ([4.0, 4.1, 3.9, 4.9, 5.0, 4.9], 1, False),  # steps of one row: twelve of them
        ([4.0] * 12 + [4.9] * 12, 1, True),
        ([4.0, 4.1, 3.9, 9.0, 3.9, 4.0, 3.9], 16, False),
    ],
)
def test_a_rise_by_a_fifth_is_divergence(losses: list[float], rows: int, expected: bool):
    assert diverges(losses, rows) == expected
