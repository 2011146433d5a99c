"""The step with the lowest loss on the validation text is kept, and nothing that is reported has chosen it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.data.test_splits import sentence
from tests.files import write_rows
from tests.runs import assert_resumes, interrupt, run_config
from tests.tiny import logits
from tsugiki.adapters import load_adapter, saved_chat_template
from tsugiki.base import load_model
from tsugiki.data import DEFAULT_TEMPLATE, Document, Window
from tsugiki.data.windows import evenly_spread
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, checkpoints
from tsugiki.report import run_notes
from tsugiki.report.run import report_page
from tsugiki.training import Choices, EvaluationCallback, EvaluationPlan, RunConfig, RunScores, plan_evaluations, train
from tsugiki.training.choose.choices import _growing_steps

SETTINGS: dict[str, Any] = {"validation": "auto", "max_steps": 6, "eval_steps": 1, "save_steps": 2, "held_out": 0.5}


def config(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    texts = folder / "works"
    if not texts.exists():
        texts.mkdir()
        for i in range(12):
            (texts / f"{i}.txt").write_text(sentence(i, 150))
    return run_config(folder, out, data=str(texts), **{**SETTINGS, **changes})


def losses_on_validation(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the evaluations of the validation text have these losses: of the base, and after each step."""
    validate = RunScores.validate

    def pretended(self: RunScores, loop: Any, step: int | None = None) -> Any:
        result = validate(self, loop, step)
        loss = losses[result.step]
        scores = tuple((tokens * loss, tokens, characters) for _nll, tokens, characters in result.documents)
        result = result.model_copy(update={"loss": loss, "documents": scores})
        self.record.validations[-1] = result
        return result

    monkeypatch.setattr(RunScores, "validate", pretended)


def test_the_best_step_is_kept_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_on_validation(monkeypatch, [5, 4.9, 4.7, 4.8, 4.6, 4.75, 4.7])
    record = train(config(tmp_path))
    assert record.kept_step == 4
    assert [entry.step for entry in record.validations] == [0, 1, 2, 3, 4, 5, 6]
    assert [entry.step for entry in record.evaluations] == [0, 4]
    assert [sample.step for sample in record.samples] == [0, 3, 4]
    found = {path.name: (path / ADAPTER_FILE).read_bytes() for path in checkpoints(tmp_path / "run" / CHECKPOINTS)}
    ours = (tmp_path / "run" / ADAPTER_FILE).read_bytes()
    assert (ours == found["checkpoint-4"], ours == found["checkpoint-6"]) == (True, False)
    assert record.data.validation is not None

    lasting = train(config(tmp_path, "last", keep="last"))
    assert (lasting.kept_step, [entry.step for entry in lasting.evaluations]) == (6, [0, 6])
    assert lasting.loss_curve == record.loss_curve


@pytest.mark.parametrize("method", ["lora", "full", "norms"])
def test_the_base_is_evaluated_later_as_before(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = config(tmp_path, method=method, prompts=[], max_steps=2, save_steps=9)
    late = train(given)
    monkeypatch.setattr(EvaluationCallback, "_base_can_wait", lambda self: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))  # the first one has the figures of the base
    early = train(given.model_copy(update={"out": str(tmp_path / "early")}))
    for found, expected in ((late.evaluations, early.evaluations), (late.validations, early.validations)):
        assert [entry.step for entry in found] == [entry.step for entry in expected]
        assert found[0].loss == pytest.approx(expected[0].loss, rel=1e-6)
    assert [entry.step for entry in late.validations] == [0, 1, 2]
    assert late.evaluations[-1] == early.evaluations[-1]
    assert late.evaluations[0] != late.evaluations[-1]


def test_a_run_ends_when_the_loss_has_not_fallen_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_on_validation(monkeypatch, [5, 4.9, 4.7, 4.8, 4.8, 4.1, 4.1])
    whole = train(config(tmp_path, prompts=[]))
    assert (whole.kept_step, whole.training.steps) == (2, 4)
    patient = train(config(tmp_path, "patient", patience=0, prompts=[]))
    assert (patient.kept_step, patient.training.steps) == (5, 6)

    def interrupted(self: EvaluationCallback, loop: Any) -> None:
        raise KeyboardInterrupt

    cut = config(tmp_path, "cut", prompts=[])
    with monkeypatch.context() as patch:  # a run that is interrupted after its last step is finished
        patch.setattr(EvaluationCallback, "on_train_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    record = train(cut, resume=True)
    assert (tmp_path / "cut" / ADAPTER_FILE).read_bytes() == (tmp_path / "run" / ADAPTER_FILE).read_bytes()
    assert (record.evaluations, record.kept_step) == (whole.evaluations, 2)


def test_if_the_best_checkpoint_is_damaged_the_last_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_on_validation(monkeypatch, [5, 4.9, 4.7, 4.8, 4.75])
    settings = config(tmp_path, max_steps=4)
    finish = EvaluationCallback.on_train_end

    def damaged(self: EvaluationCallback, loop: Any) -> None:
        file = tmp_path / "run" / CHECKPOINTS / "checkpoint-2" / ADAPTER_FILE
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        finish(self, loop)

    monkeypatch.setattr(EvaluationCallback, "on_train_end", damaged)
    with pytest.warns(UserWarning, match="checkpoint-2 is damaged.*the last step is kept instead of step 2"):
        record = train(settings)
    assert (record.kept_step, record.status) == (4, "finished")


def test_full_fine_tuning_keeps_the_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_on_validation(monkeypatch, [5, 4.9, 4.7, 4.8, 4.75])
    settings = {"method": "full", "compute_dtype": "fp32", "max_steps": 4, "learning_rate": 1e-3, "prompts": []}
    record = assert_resumes(train, config(tmp_path, **settings, save_steps=1), 3, files=("model.safetensors",))
    assert record.kept_step == 2


BREAKING: dict[str, Any] = {"learning_rate": 30.0, "max_steps": 3, "save_steps": 1, "prompts": []}
"""Settings with which every step is worse than a base that has learned the texts."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny base that has learned the texts: it has something to lose."""
    folder = tmp_path_factory.mktemp("learned")
    steps = {"max_steps": 40, "batch_size": 8, "save_steps": 40, "eval_steps": 40, "prompts": []}
    train(config(folder, **steps, method="full", keep="last"))
    return str(folder / "run")


@pytest.mark.parametrize("start", [True, "pissa"])
def test_the_start_is_kept_if_no_step_is_better(start: Any, learned: str, tmp_path: Path):
    given = config(tmp_path, model=learned, **BREAKING, lora={"init_lora_weights": start})
    record = train(given) if start == "pissa" else assert_resumes(train, given, 2)
    before, after = record.evaluations
    assert (record.kept_step, after.step, after.loss) == (0, 0, before.loss)
    assert [entry.step for entry in record.validations] == [0, 1, 2, 3]
    notes = " ".join(note.text for note in run_notes(record))
    assert notes.count("Nothing that was learned helps") == 1
    assert not any(said in notes for said in ("is kept", "worse than the base", "hardly"))
    base, adapted = load_model(given.model), load_model(given.model)
    load_adapter(adapted, record.folder())
    assert (logits(adapted) - logits(base)).abs().max() <= (1e-4 if start == "pissa" else 0)


def test_the_start_of_a_narrow_model_is_kept_if_no_step_is_better(learned: str, tmp_path: Path):
    given = config(tmp_path, model=learned, **BREAKING, method="full", compute_dtype="fp32", save_dtype="fp32")
    assert train(given).kept_step == 0
    base = load_model(given.model, dtype="fp32").state_dict()
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all((kept[name] == base[name]).all() for name in kept)


def test_an_adapter_that_a_run_only_spoils_is_kept_as_it_was(tmp_path: Path):
    lora = {"target_modules": ["c_attn", "c_proj"]}
    first = train(config(tmp_path, "first", max_steps=4, prompts=[], lora=lora))
    settings = {"start_from": str(tmp_path / "first"), "learning_rate": 100.0, "max_steps": 3, "prompts": []}
    second = train(config(tmp_path, "second", **settings))
    assert first.kept_step > 0 == second.kept_step
    assert second.any_step_is_better(), "a step was better than the base, but not than the first adapter"
    one, other = (load_file(tmp_path / name / ADAPTER_FILE) for name in ("first", "second"))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_longer_run_compares_losses_on_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def plan(choices: Any, data: Any, every: Any, characters: Any, scores: int) -> EvaluationPlan:
        return EvaluationPlan(3, 1 if choices.steps == 4 else 2, 1)

    monkeypatch.setattr("tsugiki.training.run.evaluation_callback.plan_evaluations", plan)
    train(config(tmp_path, max_steps=4))
    record = train(config(tmp_path, max_steps=6), resume=True)
    assert [entry.windows for entry in record.validations] == [1] * 7


def questions(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    """Settings of a run on twelve facts in five wordings, whose length is open."""
    rows = [{"prompt": f"{fact}? {wording}", "completion": f"{fact}!"} for fact in range(12) for wording in range(5)]
    data = write_rows(folder / "questions.jsonl", rows)
    settings = {"validation": "auto", "held_out": "auto", "max_steps": None, "block_size": 64, "prompts": []}
    return run_config(folder, out, data=data, **{**settings, **changes})


def test_a_run_on_questions_ends_when_its_loss_levels_off_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_on_validation(monkeypatch, [5.0] + [3.0] * 4 + [2.0] * 4 + [1.0] * 4 + [0.99] * 9)
    given: dict[str, Any] = {"save_steps": 6, "eval_steps": 4, "learning_rate": 1e-3}
    record = train(questions(tmp_path, **given))
    assert [look.step for look in record.validations] == [0, 4, 8, 12, 16, 20]
    assert (record.training.steps, record.ended_by) == (20, "validation")
    assert saved_chat_template(record.folder()) == DEFAULT_TEMPLATE, "the base has none"
    assert report_page(record, record.folder()), "also where the settings give no number of passes"
    rates = [point.learning_rate for point in record.loss_curve]
    assert rates == pytest.approx([1e-3] * 17 + [0.75e-3, 0.5e-3, 0.25e-3])
    for step in (9, 18):  # before and after the rate falls
        cut = questions(tmp_path, f"cut-{step}", **given)
        interrupt(train, cut, step)
        again = train(cut, resume=True)
        assert (again.loss_curve, again.validations) == (record.loss_curve, record.validations)
        assert (tmp_path / f"cut-{step}" / ADAPTER_FILE).read_bytes() == (tmp_path / "run" / ADAPTER_FILE).read_bytes()


def test_a_run_that_its_largest_number_of_steps_has_ended_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.choose.choices._MOST_STEPS_FOR_ANSWERS", 20)
    monkeypatch.setattr("tsugiki.training.choose.choices._PASSES", 1)
    losses_on_validation(monkeypatch, [5 - step / 10 for step in range(41)])
    record = train(questions(tmp_path, batch_size=8))
    assert (record.training.steps, record.kept_step, record.ended_by) == (20, 20, "bound")
    [hint] = [note.text for note in run_notes(record) if "still falling" in note.text]
    assert f"`tsugiki train --resume {record.config.out} --max-steps 40`" in hint
    longer = train(questions(tmp_path, batch_size=8, max_steps=40), resume=True)
    assert (longer.training.steps, longer.ended_by) == (40, "length")


def test_looks_at_a_run_of_open_length_stand_at_steps_that_grow():
    plan = EvaluationPlan(4, 12, 8, frozenset(_growing_steps(120, 1)))
    due = [step for step in range(1, 121) if plan.is_due(step, 120, None)]
    assert due == [8, 12, 16, 24, 32, 48, 64, 96, 120]
    assert _growing_steps(120, 1 / 16) == [16, 32, 48, 64, 96], "two looks need 32 steps"


def test_evaluations_are_spread_over_the_run():
    for evaluations, every, expected in ((4, None, [3, 5, 8, 10]), (4, 4, [4, 10]), (4, 3, [3, 6, 10]), (0, None, [])):
        plan = EvaluationPlan(evaluations, 12, 8)
        assert [step for step in range(1, 11) if plan.is_due(step, 10, every)] == expected
    assert evenly_spread(range(10), 4) == [0, 2, 5, 7]
    assert evenly_spread(range(3), 4) == [0, 1, 2]


@pytest.mark.parametrize(
    ("steps", "evaluations", "windows", "held_out"),
    [(100, 0, 8, 8), (200, 3, 8, 8), (1000, 4, 9, 27), (4000, 8, 19, 50), (100_000, 8, 32, 50)],
)
def test_evaluations_take_a_share_of_the_run(steps: int, evaluations: int, windows: int, held_out: int):
    # A step has 200 tokens. A window has 512, of which each costs half as much as in a step: 2,048 for eight of them.
    summary = SimpleNamespace(tokens_per_epoch=10_000, train=SimpleNamespace(characters=10_000))
    texts = [Window(Document("枝" * 512, str(number)), number) for number in range(50)]
    data: Any = SimpleNamespace(blocks=range(100), windows=texts, validation_windows=texts[:40], summary=summary)
    choices = Choices(2, 1e-3, steps)
    assert plan_evaluations(choices, data, None) == EvaluationPlan(evaluations, windows, held_out)
    assert plan_evaluations(choices, data, None, characters=20_000).held_out == 50
