"""What a run decides by its validation text."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data.test_splits import sentence
from tests.files import write_rows
from tests.runs import assert_resumes, run_config
from tests.tiny import grafted, shake, tiny_model
from tests.training.run import test_preference_runs
from tests.training.run.test_keep_best import config
from tsugiki import LoraConfig, graft
from tsugiki.data import Document, Window
from tsugiki.data.windows import in_turns
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS
from tsugiki.report import run_notes
from tsugiki.report.run import decision_table
from tsugiki.training import RunRecord, RunScores, new_record, train
from tsugiki.training.choose.decisions import (
    OF_ONE_TEXT,
    Look,
    PairLook,
    enough_windows,
    has_levelled,
    is_certainly_lower,
    looks,
    lowest_of_parabola,
    multiply_update,
    pair_looks,
    starts_from_zero,
)
from tsugiki.training.model.trainable import trained_values
from tsugiki.training.record.result import StepEvaluation, StepPairs, of_first_windows, summarise


def result(losses: list[float], step: int = 1, groups: list[int] | None = None) -> StepEvaluation:
    """The result of windows with these losses, each of 100 tokens and characters."""
    scores = [(100 * loss, 100, 100) for loss in losses]
    found = summarise(scores, groups or range(len(scores)), len(scores), 0, 0, 0, True)
    return StepEvaluation(step=step, **dict(found))


def test_the_strength_is_where_a_parabola_is_lowest():
    assert lowest_of_parabola(*(4 * math.exp(0.1 * (s - 0.4) ** 2) for s in (0, 0.5, 1))) == 0.4
    assert lowest_of_parabola(3.27, 0.5, 0.0456) == 1, "facts: a parabola through the losses would be below 0 at 0.79"
    assert lowest_of_parabola(4.0, 3.9, 3.8) == 1  # a line
    assert lowest_of_parabola(3.8, 3.9, 4.0) == 0
    assert lowest_of_parabola(4.0, 4.1, 3.9) == 1  # lower at both ends than in the middle
    assert lowest_of_parabola(4.0, 3.9, 3.85) == 1  # the lowest point is above 1


def test_a_look_has_the_scores_of_its_strength():
    rng = np.random.default_rng(0)
    base, slope, bend = rng.uniform(3, 5, 6), rng.uniform(-2, -1, 6), rng.uniform(1, 2, 6)

    def losses(s: float) -> list[float]:
        return list(np.exp((base + slope * s + bend * s * s) / 4))

    look = Look(result(losses(1)), result(losses(0.5)), result(losses(0), 0))
    measured = [sum(losses(s)) for s in (0, 0.5, 1)]
    assert look.strength == lowest_of_parabola(*measured)
    assert [score[0] / 100 for score in look.scores] == pytest.approx(losses(look.strength))
    assert look.loss == pytest.approx(np.mean(losses(look.strength)))
    without_half = Look(result(losses(1)))
    assert (without_half.strength, without_half.loss) == (1, pytest.approx(np.mean(losses(1))))


def test_a_look_is_certainly_lower_only_if_the_documents_agree():
    def is_lower(losses: list[float], documents: list[int] | None = None) -> bool:
        before = result([4.0, 5.0, 3.0, 4.5, 4.2, 4.1], 1, documents)
        return is_certainly_lower(Look(result(losses, 1, documents)), Look(before))

    falls = [3.9, 4.8, 2.9, 4.4, 4.1, 4.0]
    assert is_lower(falls)
    assert not is_lower([3.0, 5.2, 3.1, 4.6, 4.3, 4.2]), "lower, by one document alone"
    assert not is_lower(falls, [0, 0, 0, 1, 1, 1]), "two documents with three windows each are two"
    assert is_lower(falls, [0] * 6), "one document is its windows"


def test_the_windows_of_later_looks_follow_from_the_width_of_the_first_interval():
    assert enough_windows((-0.05, -0.047), 32, 8) == 32
    assert enough_windows((-0.05, -0.0486), 32, 8) == 8
    assert enough_windows((-0.0500, -0.0476), 32, 8) == 21  # 32 * (0.0024 / 0.003)^2
    assert enough_windows((-0.1, 0.2), 32, 8) == 32
    assert enough_windows(None, 32, 8) == 32
    whole = result([4.0, 5.0, 3.0, 4.5], 7, [0, 1, 0, 1])
    assert of_first_windows(whole, 2) == result([4.0, 5.0], 7, [0, 1])


def test_the_first_windows_are_from_many_documents():
    places = [(0, 0), (0, 0), (0, 0), (1, 1), (2, 1), (2, 1)]  # document 2 is nearly the same as document 1
    turns = in_turns([Window(Document(str(number), ""), *place) for number, place in enumerate(places)])
    assert [window.record.text for window in turns] == ["0", "3", "1", "4", "2", "5"]
    assert [(window.document, window.group) for window in turns] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 1)]


WITHOUT_STRENGTH: list[dict[str, Any]] = [
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"lora_bias": True},
    {"bias": "all"},
    {"modules_to_save": ["ln_f"]},
]


def test_only_plain_lora_that_starts_from_zero_has_a_strength():
    def has_strength(trained: bool = False, **settings: Any) -> bool:
        model = graft(tiny_model("gpt2"), LoraConfig(r=2, **settings))
        return starts_from_zero(shake(model) if trained else model, trained_values(model))

    assert has_strength(target_modules=["c_attn", "wte"], use_rslora=True)
    assert not [settings for settings in WITHOUT_STRENGTH if has_strength(**settings)]
    assert not has_strength(trained=True), "training began with an adapter"


def test_a_multiplied_update_is_between_the_base_and_the_adapter():
    model = grafted(tiny_model("gpt2"), LoraConfig(r=2)).double()
    layer = model.transformer.h[0].attn.c_attn
    whole = layer.lora.delta()
    multiply_update(model, 0.3)
    assert torch.allclose(layer.lora.delta(), 0.3 * whole)


def pretend(monkeypatch: pytest.MonkeyPatch, parts: dict[int, tuple[float, float]], chosen: float = 0.5) -> None:
    """Let the looks have these losses relative to the base's: step -> half and whole update.

    `chosen` is that of the kept step at the strength that a parabola proposes, which is scored at the end.
    """
    score = RunScores.score

    def pretended(self: RunScores, loop: Any, windows: list[Window], step: int | None = None) -> Any:
        found = score(self, loop, windows, step)
        if windows is not self.validation_windows or not found.step:
            return found
        is_half = len(self.record.validations) > 1 + len(self.record.half_validations)
        factor, of_base = parts[found.step][0 if is_half else 1], self.record.validations[0]
        if found.step in [one.step for one in self.record.half_validations]:
            factor = chosen
        documents = tuple((nll * factor, *rest) for nll, *rest in of_base.documents)
        return found.model_copy(update={"loss": of_base.loss * factor, "documents": documents})

    monkeypatch.setattr(RunScores, "score", pretended)


SETTINGS: dict[str, Any] = {"max_steps": 4, "save_steps": 1, "prompts": []}


def test_a_run_keeps_the_step_and_the_strength_that_are_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, {1: (0.95, 0.92), 2: (0.92, 0.91), 3: (0.9, 1.05), 4: (0.91, 1.0)}, chosen=0.89)
    record = assert_resumes(train, config(tmp_path, **SETTINGS), 3)
    # A parabola through 1, 0.9 and 1.05 is lowest at 0.45.
    assert (record.kept_step, record.strength) == (3, 0.45)
    assert [look.strength for look in looks(record)] == [1, 0.83, 0.45, 0.5]
    assert record.any_step_is_better(), "at a part of its update"
    notes = " ".join(note.text for note in run_notes(record))
    assert not any(said in notes for said in ("better than the base", "by heart: "))
    folder = tmp_path / "run" / "whole"
    checkpoint, kept = (load_file(path / ADAPTER_FILE) for path in (folder / CHECKPOINTS / "checkpoint-3", folder))
    for name, value in kept.items():
        assert torch.allclose(value, (0.45 if "lora_B" in name else 1.0) * checkpoint[name]), name


@pytest.mark.parametrize(("chosen", "kept"), [(0.89, 0.45), (0.93, 0.5)])
def test_a_strength_is_measured_before_it_is_kept(
    chosen: float, kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretend(monkeypatch, {1: (0.95, 0.92), 2: (0.92, 0.91), 3: (0.9, 1.05), 4: (0.91, 1.0)}, chosen)
    record = train(config(tmp_path, **SETTINGS))
    assert record.strength == kept, "half of the update wins where a parabola is wrong"
    relative = {strength: loss / record.strength_losses[0] for strength, loss in record.strength_losses.items()}
    assert relative == pytest.approx({0: 1, 0.5: 0.9, 1: 1.05, 0.45: chosen})
    again = RunRecord.model_validate(record.to_json())
    assert again.strength_losses == record.strength_losses
    (row,) = [row for row in decision_table(record).rows if row[0] == "strength"]
    assert row[1] == f"{kept:g}"
    assert "0.45: " in row[2]


OF_ONE_FILE: dict[str, Any] = {**SETTINGS, "validation": "auto", "eval_steps": 1}


def test_of_questions_the_whole_update_is_kept_unless_another_is_certainly_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"prompt": f"{n * 7919}?", "completion": f"{n * 104729}."} for n in range(40)]
    data = write_rows(tmp_path / "questions.jsonl", rows)
    pretend(monkeypatch, dict.fromkeys(range(1, 5), (0.9, 0.95)), chosen=0.89)
    settings: dict[str, Any] = {**OF_ONE_FILE, "data": data, "max_steps": 1, "mix": "none"}
    settings["chat_template"] = "none"  # a template fills the short rows of the tiny base
    certain = train(run_config(tmp_path, **settings))
    assert certain.strength == 0.58
    monkeypatch.setattr("tsugiki.training.run.best_step.is_certainly_lower", lambda one, other: False)
    assert train(run_config(tmp_path, "whole", **settings)).strength == 1


def test_one_text_keeps_a_part_of_the_strength_that_its_own_end_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = tmp_path / "one.txt"
    text.write_text(sentence(1, 3000))
    settings: dict[str, Any] = {**OF_ONE_FILE, "data": str(text), "held_out": 0.1}
    short = train(run_config(tmp_path, "short", **settings))
    assert (short.validations, short.strength, short.data.held_out.same_text) == ([], OF_ONE_TEXT, True)
    assert ["strength", f"{OF_ONE_TEXT:g}"] == decision_table(short).rows[-1][:2]
    train(run_config(tmp_path, "whole", **settings, keep="last"))
    ours, theirs = (load_file(tmp_path / name / ADAPTER_FILE) for name in ("short", "whole"))
    for name, value in ours.items():
        assert torch.allclose(value, (OF_ONE_TEXT if "lora_B" in name else 1.0) * theirs[name]), name
    pretend(monkeypatch, dict.fromkeys(range(1, 5), (0.9, 0.95)), chosen=0.89)
    long = assert_resumes(train, run_config(tmp_path, "long", **{**settings, "held_out": 0.5, "save_steps": 1}), 3)
    assert long.data.validation.from_held_out
    assert long.strength == pytest.approx(0.58 * OF_ONE_TEXT, abs=1e-3)
    other = train(run_config(tmp_path, "none", **{**settings, "validation": "none"}))
    assert other.strength == 1


def test_nothing_is_kept_if_no_part_of_an_update_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, dict.fromkeys(range(1, 5), (1.06, 1.15)))
    record = train(config(tmp_path, **SETTINGS, patience=0))
    assert (record.kept_step, record.strength) == (0, 0)
    assert record.evaluations[-1].loss == record.evaluations[0].loss
    kept = load_file(tmp_path / "run" / ADAPTER_FILE)
    assert not any(value.any() for name, value in kept.items() if "lora_B" in name)


def test_a_run_ends_when_its_looks_are_certainly_above_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rising = {1: (0.95, 0.90), 2: (0.97, 1.0), 3: (0.98, 1.02), 4: (0.90, 0.80)}
    pretend(monkeypatch, rising)
    record = train(config(tmp_path, **SETTINGS))
    assert (record.training.steps, record.kept_step) == (3, 1)
    monkeypatch.setattr("tsugiki.training.run.best_step.is_certainly_lower", lambda one, other: False)
    patient = train(config(tmp_path, "patient", **SETTINGS))
    assert (patient.training.steps, patient.kept_step) == (4, 4)


def pairs(objectives: list[float], step: int, prompts: tuple[int, ...] = ()) -> StepPairs:
    """The pairs of a look, of which only what is compared matters."""
    figures = dict.fromkeys(("margin", "chosen", "rejected", "chosen_tokens", "rejected_tokens", "accuracy"), 1.0)
    compared: dict[str, Any] = {"objectives": tuple(objectives), "prompts": prompts}
    return StepPairs(step=step, pairs=len(objectives), accuracy_interval=(0, 1), **compared, **figures)


def test_pairs_of_one_prompt_are_one_when_looks_are_compared():
    before, after = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8], [0.9, 1.0, 0.8, 0.92, 1.1, 0.7]
    assert is_certainly_lower(PairLook(pairs(after, 2)), PairLook(pairs(before, 1)))
    two = (0, 0, 0, 1, 1, 1)
    assert not is_certainly_lower(PairLook(pairs(after, 2, two)), PairLook(pairs(before, 1, two)))
    assert PairLook(pairs(after, 2, two)).scores == [(pytest.approx(2.7), 3, 3), (pytest.approx(2.72), 3, 3)]
    assert PairLook(pairs(after, 2, two)).loss == pytest.approx(sum(after) / 6)


def test_a_look_at_which_the_chosen_answers_are_certainly_less_likely_does_not_count():
    record = SimpleNamespace(
        validations=[result([4.0, 5.0, 3.0], 0), result([4.12, 5.16, 3.09], 1), result([4.1, 4.8, 3.1], 2)],
        pair_validations=[pairs([1.0, 1.0], 0), pairs([0.1, 0.1], 1), pairs([0.5, 0.5], 2)],
    )
    found: Any = pair_looks(record)  # type: ignore[arg-type]
    assert [look.step for look in found] == [0, 2]


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_every_pair_has_what_a_step_minimises(name: str, tmp_path: Path):
    settings = {"preference_settings": {"likelihood": 1.0}, "max_steps": 1, "eval_steps": 1}
    record = train(test_preference_runs.config(tmp_path, preference=name, **settings))
    for look in record.pair_validations:
        assert len(look.objectives) == look.pairs
    if name == "dpo":  # at the start every log-ratio is 0: log 2 is left, and the likelihood of the chosen answers
        start = record.pair_validations[0]
        likelihood = -start.chosen / start.chosen_tokens
        assert np.mean(start.objectives) - math.log(2) == pytest.approx(likelihood, rel=0.2)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((4.0, 1.0), False),
        ((4.0, 1.0, 0.9), False),
        ((4.0, 1.0, 0.95), True),  # 0.05 of the 3.05 that were gained
        ((4.0, 0.25, 0.22), False),  # a tenth of what is left: facts
        ((4.0, 0.02, 0.01), True),  # nothing is left
        ((4.0, 1.0, 1.1), False),  # one look may be higher by chance
        ((4.0, 1.0, 1.1, 1.05), True),
        ((4.0, 1.0, 1.1, 0.5), False),
    ],
)
def test_the_loss_has_levelled_when_it_hardly_falls_or_twice_not_at_all(
    losses: tuple[float, ...], expected: bool, tmp_path: Path
):
    record = new_record(config(tmp_path, **SETTINGS).to_record())
    record.validations = [result([loss], step=8 * number) for number, loss in enumerate(losses)]
    assert has_levelled(record) == expected
