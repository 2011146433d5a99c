"""Runs that learn preferences: they begin at the reference, keep the text, resume, and are the plain loop."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.errors import refused
from tests.files import write_rows
from tests.runs import assert_resumes, run_config, tiny_base
from tests.tiny import TEXT
from tsugiki.io import cache_folder
from tsugiki.report import report_page
from tsugiki.training import RunConfig, automatic_learning_rate, train
from tsugiki.training.run import prepare as run

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))
import preference_loop

LOG_2 = pytest.approx(math.log(2), abs=1e-6)


def pairs_of(folder: Path, count: int = 30, single: bool = False) -> str:
    """Pairs (or single answers) about different places in a text; the chosen answers end with a stop."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        place, good = TEXT[number * 17 : number * 17 + 7], number % 2 == 0
        prompt, answer = f"{number}{place[:3]}", place[3:]
        pair = {"prompt": prompt, "chosen": f"{answer}.", "rejected": f"{answer[::-1]}no"}
        rows.append({"prompt": prompt, "completion": answer + "." * good, "label": good} if single else pair)
    return write_rows(folder / f"answers-{count}-{single}.jsonl", rows)


def config(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    given: dict[str, Any] = {"data": pairs_of(folder), "preference": "dpo", "block_size": 64, "lora": {"r": 4}}
    given |= {"validation": "auto", "prompts": [], "held_out_characters": 200_000, "allow_overlap": True, **changes}
    return run_config(folder, out, **{name: value for name, value in given.items() if value != {}})


BEGINNINGS: dict[str, dict[str, Any]] = {
    "bf16": {"base_dtype": "bf16"},
    "int8": {"base_dtype": "int8"},
    "nf4": {"base_dtype": "nf4"},
    "full": {"method": "full", "lora": {}, "learning_rate": 1e-3},
    "a step is timed before it": {"max_steps": None, "minutes": 5, "eval_steps": 1000},
    "documents in rows of their own": {"model": "bloom", "batch_size": 99, "micro_batch_size": 2},
}


@pytest.mark.parametrize("case", BEGINNINGS)
def test_a_run_begins_at_the_reference(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "rows_in_time", lambda *_: 12)  # six steps of two rows, after the measurement
    settings = {"model": "llama", "keep": "last", "preference_settings": {"likelihood": 0.0}, **BEGINNINGS[case]}
    record = train(config(tmp_path, **settings | {"model": tiny_base(tmp_path, settings["model"])}))
    assert (record.data.document_masking == "separate_rows") == (settings["model"] == "bloom")
    first = record.preference_curve[0]
    assert (first.margin, first.accuracy) == (0.0, 0.5), "the reference has the bits of the model before the first step"
    assert record.loss_curve[0].loss == LOG_2
    assert (record.pair_evaluations[0].margin, record.pair_evaluations[0].accuracy) == (0, 0.5)
    assert abs(record.preference_curve[-1].margin) > 0
    assert math.isfinite(record.loss_curve[-1].loss)


@pytest.mark.parametrize("name", ["ipo", "orpo", "kto"])
def test_every_loss_teaches_the_choice(name: str, tmp_path: Path):
    record = train(config(tmp_path, preference=name, max_steps=12, keep="last", eval_steps=6))
    assert record.pair_evaluations[-1].margin > record.pair_evaluations[0].margin
    assert record.loss_curve[-1].loss < record.loss_curve[0].loss
    assert record.preference_curve[-1].chosen_tokens == pytest.approx(14, abs=2)


def test_one_copy_of_the_prompt_gives_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"model": tiny_base(tmp_path, "llama"), "batch_size": 99, "base_dtype": "fp32"}
    shared = train(config(tmp_path, "shared", **settings))
    monkeypatch.setattr("tsugiki.training.data.packing.shares_prompts", lambda *_: False)
    apart = train(config(tmp_path, "apart", **settings))
    assert shared.data.tokens_per_epoch < apart.data.tokens_per_epoch
    assert [one.loss for one in shared.loss_curve] == pytest.approx([one.loss for one in apart.loss_curve], rel=1e-4)
    margins = [[point.margin for point in record.preference_curve] for record in (shared, apart)]
    assert margins[0] == pytest.approx(margins[1], rel=1e-3)
    assert shared.pair_evaluations[-1].margin == pytest.approx(apart.pair_evaluations[-1].margin, rel=1e-3)


def test_the_steps_are_those_of_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.data.packing.shares_prompts", lambda *_: False)  # like the plain loop
    data = tmp_path / "pairs.csv"
    data.write_text(preference_loop.PAIRS.replace("/", "\n"), encoding="utf-8")
    plain = preference_loop.Settings(data=str(data), out=str(tmp_path / "plain"), epochs=1)
    steps, (_before, after) = preference_loop.train(plain)
    same = {name: getattr(plain, name) for name in ("epochs", "batch_size", "learning_rate", "block_size", "held_out")}
    lora = {"r": 8, "target_modules": ["c_attn", "c_fc", "c_proj"]}
    settings = {"preference": "dpo", "max_grad_norm": 0, "validation": "none", "base_dtype": "fp32", "lora": lora}
    record = train(RunConfig(model="embedded", data=str(data), out=str(tmp_path / "run"), **same, **settings))
    assert len(record.loss_curve) == len(steps)
    for mine, point, wanted in zip(record.loss_curve, record.preference_curve, steps, strict=True):
        # The scores of the plain loop are those before the update, like ours.
        assert mine.loss == pytest.approx(wanted.dpo + wanted.likelihood, rel=1e-4)
        assert point.margin == pytest.approx(wanted.margin, rel=1e-3, abs=1e-4)
        assert point.accuracy == pytest.approx(wanted.accuracy, abs=0.5 if wanted.margin == 0 else 1e-6)
    assert record.pair_evaluations[-1].margin == pytest.approx(after.margin, rel=1e-3)
    assert record.pair_evaluations[-1].accuracy == after.accuracy


def test_a_run_resumes_with_the_same_bytes(tmp_path: Path):
    record = assert_resumes(train, config(tmp_path, validation="none", prompts=["枝を"]), 3)
    assert [point.step for point in record.preference_curve] == [1, 2, 3, 4]


def test_the_reference_is_computed_once_for_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = train(config(tmp_path, "one", max_steps=2))
    assert list(cache_folder("base").glob("*.json"))
    monkeypatch.setattr("tsugiki.training.run.preference.training_reference", None)  # calling it is an error
    second = train(config(tmp_path, "two", max_steps=2, preference_settings={"beta": 0.5}))
    assert second.preference_curve[0] == first.preference_curve[0]
    assert second.preference_curve[-1] != first.preference_curve[-1]
    with pytest.raises(TypeError):
        train(config(tmp_path, "three", data=pairs_of(tmp_path, 25)))


def test_an_adapter_that_is_continued_is_its_own_reference(tmp_path: Path):
    train(config(tmp_path, "one", keep="last"))
    record = train(config(tmp_path, "two", start_from=str(tmp_path / "one")))
    assert record.preference_curve[0].margin == 0
    assert record.pair_evaluations[0].margin == 0


def test_what_ruins_the_text_is_not_kept(tmp_path: Path):
    """Without the likelihood and with a high rate, the margin grows and the chosen answers are lost."""
    loss = {"preference_settings": {"likelihood": 0.0, "beta": 0.05}}
    wild = {**loss, "learning_rate": 10.0, "eval_steps": 2, "held_out": 0.6}
    record = train(config(tmp_path, max_steps=20, patience=2, **wild))
    start, *later = record.validations
    assert min(entry.loss for entry in later) > start.loss
    assert record.kept_step == 0
    assert record.training.steps < 20
    assert record.evaluations[-1].loss == record.evaluations[0].loss


def test_single_answers_are_learned_by_kto_alone(tmp_path: Path):
    data = pairs_of(tmp_path, 40, single=True)
    settings = {"preference_settings": {"likelihood": 0.0, "beta": 0.5}, "max_steps": 24, "keep": "last"}
    record = train(config(tmp_path, data=data, preference="kto", held_out=0.4, **settings))
    assert (record.preference_curve[0].margin, record.preference_curve[0].accuracy) == (0, 0.5)
    assert record.loss_curve[0].loss >= 0.5
    assert record.preference_curve[-1].margin > 0
    assert record.pair_evaluations[-1].longer_is_chosen is None
    with refused("kto"):
        train(config(tmp_path, "other", data=data, preference="dpo"))


@pytest.mark.parametrize(
    "given",
    [
        {"preference_settings": {"gamma": 1.0}},
        {"preference_settings": {"beta": math.inf}},
        {"preference_settings": {"beta": 0.0}},
        {"preference_settings": {"label_smoothing": 0.5}},
        {"preference": None, "preference_settings": {"beta": 1.0}},
        {"mix": "other.txt:0.1"},
        {"assistant_turns": "last"},
        {"shard": "fsdp"},
        {"method": "prompt-tuning", "lora": {}},
    ],
)
def test_settings_without_a_meaning_are_refused(given: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match="preference|prefer"):
        config(tmp_path, **given)


def test_dropout_is_off_by_default(tmp_path: Path):
    assert config(tmp_path, lora={"r": 2}).lora.lora_dropout == 0
    assert config(tmp_path, lora={"r": 2, "lora_dropout": 0.1}).lora.lora_dropout == 0.1


def test_losses_that_would_ruin_the_text_have_a_tenth_of_the_rate(tmp_path: Path):
    def rate(name: str | None, **settings: float) -> float:
        given = config(tmp_path, preference=name, preference_settings=settings, learning_rate="auto")
        return automatic_learning_rate(given, width=256, steps=200, tokens=2048)

    assert [rate(name) for name in ("dpo", "dpo_norm", "kto", "apo_zero", "orpo", "simpo")] == [rate(None)] * 6
    assert rate("ipo") == pytest.approx(rate(None) / 10)
    assert [rate(name, likelihood=0.0) for name in ("dpo", "simpo")] == [pytest.approx(rate(None) / 10)] * 2


def test_scored_pairs_that_are_too_long_do_not_end_the_run_but_a_file_of_validation_pairs_is_refused(tmp_path: Path):
    with refused("answers-20.*part=validation"):
        train(config(tmp_path, validation=pairs_of(tmp_path, 20)))
    long = {"prompt": "枝", "chosen": TEXT[:14], "rejected": TEXT[14:28]}
    held_out = write_rows(tmp_path / "long.jsonl", [long])
    record = train(config(tmp_path, held_out=held_out, block_size=32, max_steps=1))
    assert (record.status, record.pair_evaluations) == ("finished", [])


@pytest.mark.parametrize("single", [False, True])
def test_nothing_is_held_out(single: bool, tmp_path: Path):
    settings = {"data": pairs_of(tmp_path, single=single), "preference": "kto" if single else "dpo"}
    record = train(config(tmp_path, held_out="none", max_steps=1, **settings))
    assert (record.status, record.pair_evaluations, record.evaluations) == ("finished", [], [])
    assert "<table" in report_page(record, tmp_path / "run")
