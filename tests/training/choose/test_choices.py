"""What a run chooses, and that a resumed run keeps it."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.runs import assert_resumes, run_config
from tests.tiny import grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError
from tsugiki.lora import LoraLinear
from tsugiki.model import features, oriented
from tsugiki.training import RunConfig, automatic_learning_rate, choices_for, describe_choices, train, weight_gain
from tsugiki.training.run import prepare as run
from tsugiki.training.step import divergence


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "data": "d", "out": "o", **changes})


@pytest.mark.parametrize(
    ("width", "steps", "rate"),
    # 5e-4 (2000 / width)^0.781, computed by hand; 1.5 times that in short runs
    [(256, 200, 2.5e-3), (256, 100, 3.7e-3), (768, 1000, 1.1e-3), (2000, 1000, 5e-4), (4096, 149, 4.3e-4)],
)
def test_the_rate_follows_from_the_width_and_the_steps(width: int, steps: int, rate: float):
    assert automatic_learning_rate(config(), width, steps, 2048) == rate


def test_the_rate_follows_from_alpha_and_the_method():
    def rate(**changes: Any) -> float:
        return automatic_learning_rate(config(**changes), 2000, 1000, 8192)

    assert rate(lora={"lora_alpha": 64}) == 2.5e-4
    assert rate(lora={"r": 64}) == rate(lora={"r": 4}) == 5e-4
    # rsLoRA multiplies the update by sqrt(r) more than LoRA does.
    assert rate(method="rslora", lora={"r": 16, "lora_alpha": 8}) == 5e-4
    assert rate(method="full") == 5e-5
    assert automatic_learning_rate(config(method="full"), 512, 1000, 8192) == 1.4e-4
    assert automatic_learning_rate(config(method="full"), 511, 1000, 8192) == 4.8e-4  # a third
    assert rate(method="pissa") == pytest.approx(5e-4 / 3, rel=0.03)
    assert rate(method="ia3") == 3e-3
    assert rate(method="prompt-tuning") == 3e-2
    assert automatic_learning_rate(config(), 8, 10, 2048) == 1e-2  # the highest


@pytest.mark.parametrize(("tokens", "rate"), [(1, 2.5e-4), (512, 2.5e-4), (1024, 3.5e-4), (2048, 5e-4), (8192, 5e-4)])
def test_small_steps_have_a_lower_rate(tokens: int, rate: float):
    assert automatic_learning_rate(config(), 2000, 1000, tokens) == rate


@pytest.mark.parametrize(
    ("gain", "rate"),
    # at most 5e-4 gain^2.5, computed by hand, and the rate by the width, 1.2e-3, if this is lower
    [(None, 1.2e-3), (4.0, 1.2e-3), (1.2, 7.9e-4), (1.0, 5e-4), (0.9, 3.8e-4), (0.5, 2e-4), (0.01, 2e-4)],
)
def test_a_base_with_small_weights_has_a_lower_rate(gain: float | None, rate: float):
    assert automatic_learning_rate(config(), 640, 1000, 2048, gain) == rate


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_gain_is_that_of_the_weights_without_biases_and_factors(kind: str):
    model = tiny_model(kind)
    assert weight_gain(model) is None, "no layer has factors"
    grafted(model, LoraConfig(r=4, target_modules="all-linear"))
    layers = [layer.base_layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    norms = [oriented(layer).norm() / math.sqrt(features(layer)[1]) for layer in layers]
    expected = math.exp(sum(math.log(norm) for norm in norms) / len(norms))
    assert weight_gain(model) == pytest.approx(expected, rel=0.1)
    for layer in layers:
        layer.weight.data *= 3
    assert weight_gain(model) == pytest.approx(3 * expected, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"),
    [(1, 2, 3), (10, 2, 15), (100, 3, 102), (400, 12, 102), (5000, 16, 939)],
)
def test_a_run_has_about_a_hundred_steps(rows: int, batch_size: int, steps: int):
    chosen = choices_for(config(), tiny_model("gpt2"), rows, 512)
    assert (chosen.batch_size, chosen.steps) == (batch_size, steps)


def test_each_process_has_a_row_of_a_step():
    few = choices_for(config(), tiny_model("gpt2"), 10, 512, processes=4)
    assert (few.batch_size, few.steps) == (4, 9)
    assert choices_for(config(max_steps=5), tiny_model("gpt2"), 100, 512, processes=32).batch_size == 32
    given = config(batch_size=2)  # an error later
    assert choices_for(given, tiny_model("gpt2"), 100, 512, processes=4).batch_size == 2


@pytest.mark.parametrize(("epochs", "steps"), [(1, 34), (6, 204), (0.5, 17)])
def test_more_epochs_are_more_steps_of_the_same_rows(epochs: float, steps: int):
    chosen = choices_for(config(epochs=epochs), tiny_model("gpt2"), 100, 512)
    assert (chosen.batch_size, chosen.steps) == (3, steps)


def test_given_numbers_are_used_as_they_are():
    chosen = choices_for(config(batch_size=5, learning_rate=0.5, max_steps=7), tiny_model("gpt2"), 100, 512)
    assert (chosen.batch_size, chosen.learning_rate, chosen.steps) == (5, 0.5, 7)
    assert choices_for(config(max_steps=7), tiny_model("gpt2"), 100, 512).batch_size == 16


def test_minutes_become_steps_of_the_rows_that_fit_into_them():
    measured: list[int] = []

    def rows_in_time() -> int:
        measured.append(450)
        return 450

    given = config(minutes=5)
    chosen = choices_for(given, tiny_model("gpt2"), 100, 512, {}, rows_in_time)
    assert (chosen.batch_size, chosen.steps) == (4, 112)
    again = choices_for(given, tiny_model("gpt2"), 100, 512, {"steps": 112, "batch_size": 4}, rows_in_time)
    assert (again.batch_size, again.steps, len(measured)) == (4, 112, 1)
    twenty_epochs = choices_for(given, tiny_model("gpt2"), 10, 512, {}, rows_in_time)
    assert twenty_epochs.steps * twenty_epochs.batch_size == 200


def test_what_was_chosen_is_one_line():
    chosen = {"batch_size": 3, "learning_rate": 0.0037, "steps": 1200}
    assert describe_choices(chosen) == ["chosen for 1,200 steps: batch size 3, learning rate 0.0037"]
    del chosen["batch_size"]
    assert describe_choices(chosen) == ["chosen for 1,200 steps: learning rate 0.0037"]
    assert describe_choices({"steps": 1200}) == []


AUTOMATIC: dict[str, Any] = {"batch_size": "auto", "learning_rate": "auto", "max_steps": None, "epochs": 1}


def test_a_run_records_and_resumes_what_was_chosen(tmp_path: Path):
    record = assert_resumes(train, run_config(tmp_path, save_steps=5, **{**AUTOMATIC, "epochs": 0.5}), 6)
    assert record.config.learning_rate == "auto"
    assert record.chosen("batch_size") == 3
    assert record.chosen("learning_rate") == 0.00015
    assert record.loss_curve[0].learning_rate == 0.00015


def test_a_run_of_some_minutes_is_resumed_with_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "rows_in_time", lambda *_: 12)  # six steps of two rows
    automatic = {"batch_size": "auto", "learning_rate": "auto", "max_steps": None}
    record = assert_resumes(train, run_config(tmp_path, save_steps=2, minutes=5, **automatic), 3)
    assert record.training is not None
    assert record.training.steps == record.resolved_settings["steps"] == 6


def test_minutes_that_are_over_before_the_first_step_end_with_one_line(tmp_path: Path):
    with pytest.raises(TsugikiError, match="minutes: the time is over before the first step"):
        train(run_config(tmp_path, max_steps=None, minutes=1e-6))
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_begins_again_with_a_third_of_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.choose.choices.automatic_learning_rate", lambda *_: 30.0)
    monkeypatch.setattr(divergence, "_RISE", 1.001)  # the loss of a tiny model cannot rise much
    lora = {"lora_dropout": 0.0, "target_modules": ["c_attn", "c_proj"]}
    settings = {**AUTOMATIC, "max_steps": 10, "batch_size": 4, "lora": lora, "prompts": []}
    record = assert_resumes(train, run_config(tmp_path, save_steps=2, **settings), 5)
    rates = [restart.learning_rate for restart in record.restarts]
    assert rates == [30.0, 10.0]
    assert record.chosen("learning_rate") == 3.3
    assert [point.step for point in record.loss_curve] == list(range(1, 11))
    assert [entry.step for entry in record.evaluations] == sorted({entry.step for entry in record.evaluations})
    assert math.isclose(record.loss_curve[0].learning_rate, 3.3)
    given = run_config(tmp_path, "given", save_steps=2, **{**settings, "learning_rate": 30.0})
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
    assert divergence.diverges(losses, rows) == expected
