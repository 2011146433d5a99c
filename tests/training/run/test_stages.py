"""Runs from end to end on a tiny model: against a plain loop, resumed, repeated, and against bad input."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.errors import refused
from tests.files import json_of
from tests.report.pages import Page
from tests.runs import assert_resumes, interrupt, run_config
from tests.tiny import TEXT, byte_tokenizer, logits, relative_error
from tests.tiny_types import lively_model
from tsugiki import load_adapter, trainable_parameters
from tsugiki.adapters import plan_merge, write_merged
from tsugiki.cli.summary import print_summary
from tsugiki.io import ADAPTER_FILE
from tsugiki.report import report_page
from tsugiki.training import RunConfig, train
from tsugiki.training.record import run_record as record_module
from tsugiki.training.run import train_steps
from tsugiki.training.run.sweep import run_all


def settings(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    return run_config(folder, out, **{"max_steps": 6, "batch_size": 4, "sample_tokens": 8, **changes})


def test_a_run_leaves_an_adapter_and_a_record(tmp_path: Path):
    record, out = train(settings(tmp_path)), tmp_path / "run"
    stored = json_of(out / "run.json")
    assert (stored["status"], record.earlier_versions) == ("finished", [])
    first, *_, last = stored["evaluations"]
    assert (first["step"], last["step"], last["loss"] < first["loss"]) == (0, 6, True)
    assert [sample["step"] for sample in stored["samples"]] == [0, 3, 6]
    assert 6 * 4 * 31 * 0.8 < stored["training"]["tokens"] <= 6 * 4 * 31  # some rows end in padding
    losses = [entry["loss"] for entry in stored["loss_curve"]]
    assert stored["training"]["loss"] == pytest.approx(sum(losses) / 6, rel=1e-3)
    assert stored["base"]["fingerprint"].startswith("sha256:")
    assert stored["data"]["train"]["documents"] == 3
    assert stored["parameters"]["trainable"] == sum(t.numel() for t in load_file(out / ADAPTER_FILE).values())
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(("written", "said"), [(0, "no checkpoint"), (1, "step 2 is kept")])
def test_a_full_disk_says_what_is_kept(written: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved, calls = train_steps.save_trained, iter(range(100))

    def save(*given: Any, **named: Any) -> None:
        if next(calls) >= written:
            raise OSError(28, "No space left on device")
        saved(*given, **named)

    monkeypatch.setattr(train_steps, "save_trained", save)
    with refused(said) as caught:
        train(settings(tmp_path, save_steps=2, eval_steps=6))
    assert "No space left" in str(caught.value)


LORA = {"r": 2, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
LIVES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "lora, in the second epoch": ("gpt2", 5, {"max_steps": 8, "batch_size": 4}),
    "lora+": ("gpt2", 3, {"method": "lora+"}),
    "pissa, before a checkpoint": ("gpt2", 1, {"method": "pissa"}),
    "experts": ("qwen3_moe", 3, {"lora": {**LORA, "target_parameters": ["gate_up_proj", "down_proj"]}}),
}
"""The type of the base, the step before which the run is interrupted, and settings."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", LIVES)
def test_a_run_is_resumed_read_by_peft_and_merged(case: str, tmp_path: Path):
    kind, step, changes = LIVES[case]
    base = tmp_path / "base"
    lively_model(kind, vocab_size=257).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    record = assert_resumes(train, run_config(tmp_path, model=str(base), learning_rate=1e-3, **changes), step)
    assert record.evaluations[-1].loss < record.evaluations[0].loss
    model, twin = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    unadapted = logits(model)
    load_adapter(model, record.folder())
    expected = logits(model)
    assert relative_error(expected, unadapted) > 1e-3
    assert record.parameters.trainable == sum(p.numel() for p in trainable_parameters(model).values())
    assert relative_error(logits(peft.PeftModel.from_pretrained(twin, record.folder()).eval()), expected) < 1e-5
    (tmp_path / "merged").mkdir()
    write_merged(plan_merge(str(base), [record.folder()]), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=model.dtype)
    assert relative_error(logits(merged), expected) < 1e-5


def test_the_retention_text_that_comes_with_tsugiki(tmp_path: Path):
    config = settings(tmp_path, max_steps=1, prompts=[], retention_data="embedded", held_out_characters=1000)
    evaluations = train(config).retention_evaluations
    assert [entry.step for entry in evaluations] == [0, 1]
    assert len(evaluations[0].documents) > 1


def test_a_run_is_not_resumed_on_other_inputs(tmp_path: Path):
    (tmp_path / "own.txt").write_text(TEXT[500:900])
    config = settings(tmp_path, save_steps=1, prompts=[], max_steps=3, retention_data=str(tmp_path / "own.txt"))
    interrupt(train, config, 2)
    for path in ("own.txt", "texts/0.txt", "base-gpt2/tokenizer.json"):
        changed = tmp_path / path
        content = changed.read_text()
        if path.endswith("json"):
            changed.write_text(json.dumps({**json.loads(content), "normalizer": {"type": "Lowercase"}}))
        else:
            changed.write_text(content + "。")
        with refused("has changed since the run"):
            train(config, resume=True)
        changed.write_text(content)
    assert train(config, resume=True).status == "finished"


def test_other_versions_are_noted_when_a_run_is_resumed(tmp_path: Path):
    config = settings(tmp_path, save_steps=1, prompts=[], max_steps=3)
    now = record_module.library_versions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_module, "version", lambda name: "1.2.3" if name == "torch" else now[name])
        interrupt(train, config, 2)
    with pytest.warns(UserWarning, match=r"torch was 1.2.3 and is "):
        record = train(config, resume=True)
    assert record.versions == now
    assert record.earlier_versions == [{**now, "torch": "1.2.3"}]
    assert "torch 1.2.3" in Page(report_page(record, tmp_path / "run")).text


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    with refused(r"(nan|inf) at step \d+.*learning rate"):
        train(settings(tmp_path, learning_rate=1e30, max_grad_norm=0, save_steps=100))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": "nowhere.txt"}, "no file or folder nowhere.txt"),
        ({"block_size": 65}, "block_size is 65.* 64"),
        ({"model": "./nowhere"}, "no model at './nowhere'"),
        ({"lora": {"target_modules": ["q_proj"]}}, "q_proj.*c_attn"),
        ({"lr_scheduler_type": "sideways"}, "sideways"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau"),
        ({"report_to": ["no-such-logger"]}, "no-such-logger"),
    ],
)
def test_bad_input_leaves_nothing_behind(changes: dict[str, Any], said: str, tmp_path: Path):
    with refused(said):
        train(settings(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_nothing_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = run_config(tmp_path, held_out=0, validation="auto")
    record = train(config)
    assert (record.status, record.evaluations, record.kept_step) == ("finished", [], 4)
    assert (record.data.held_out.documents, record.data.train.documents) == (0, 4)
    assert "nothing is held out" in capsys.readouterr().err
    assert "Nothing is held out" in report_page(record, tmp_path / "run")
    print_summary(record, tmp_path / "run" / "report.html")
    assert "Nothing is held out" in capsys.readouterr().out
    with refused("held_out is none"):
        run_all({"one": config})
