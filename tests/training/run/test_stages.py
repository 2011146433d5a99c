"""Runs from end to end on a tiny model: against a plain loop, resumed, repeated, and against bad input."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.report.pages import Page
from tests.runs import assert_resumes, interrupt, run_config, tiny_base
from tests.tiny import TEXT, logits
from tsugiki import TsugikiError, load_adapter
from tsugiki.cli.summary import print_summary
from tsugiki.io import ADAPTER_FILE
from tsugiki.report import report_page
from tsugiki.training import RunConfig, train
from tsugiki.training.record import run_record as record_module
from tsugiki.training.run import train_steps
from tsugiki.training.run.several import run_all


def settings(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    return run_config(folder, out, **{"max_steps": 6, "batch_size": 4, "sample_tokens": 8, **changes})


def test_a_run_leaves_an_adapter_that_peft_loads_and_a_record(tmp_path: Path):
    out = tmp_path / "run"
    record = train(settings(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    before = logits(model)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path)), out).eval()
    load_adapter(model, out)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), before, atol=1e-3)

    stored = json.loads((out / "run.json").read_text())
    assert stored["status"] == record.status == "finished"
    assert stored["evaluations"][0]["step"] == 0
    assert stored["evaluations"][-1]["step"] == 6
    assert stored["evaluations"][-1]["loss"] < stored["evaluations"][0]["loss"]
    assert [sample["step"] for sample in stored["samples"]] == [0, 3, 6]
    assert 6 * 4 * 31 * 0.8 < stored["training"]["tokens"] <= 6 * 4 * 31  # some rows end in padding
    assert stored["training"]["loss"] == pytest.approx(
        sum(entry["loss"] for entry in stored["loss_curve"]) / 6, rel=1e-3
    )
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
    with pytest.raises(TsugikiError, match=said) as caught:
        train(settings(tmp_path, save_steps=2, eval_steps=6))
    assert "No space left" in str(caught.value)


@pytest.mark.parametrize("cut", [*(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 3)), 5])
def test_a_resumed_run_gives_the_same_bytes(cut: int, tmp_path: Path):
    # An epoch is about five steps: the run crosses into a second one.
    assert_resumes(train, settings(tmp_path, max_steps=8), cut)


def test_the_retention_text_that_comes_with_tsugiki(tmp_path: Path):
    config = settings(tmp_path, max_steps=1, prompts=[], retention_data="embedded", held_out_characters=1000)
    record = train(config)
    assert [entry.step for entry in record.retention_evaluations] == [0, 1]
    assert len(record.retention_evaluations[0].documents) > 1
    assert record.config.retention_data == "embedded"


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
        with pytest.raises(TsugikiError, match="has changed since the run"):
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
    assert train(settings(tmp_path, "another", max_steps=1, prompts=[])).earlier_versions == []


def test_the_number_of_steps_is_foretold(tmp_path: Path):
    for epochs in (0.3, 2):
        record = train(settings(tmp_path, str(epochs), max_steps=None, batch_size=16, epochs=epochs, prompts=[]))
        assert record.resolved_settings["steps"] == record.training.steps == record.loss_curve[-1].step
    assert record.training.tokens == 2 * record.data.target_tokens_per_epoch


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    with pytest.raises(TsugikiError, match=r"(nan|inf) at step \d+.*learning rate"):
        train(settings(tmp_path, learning_rate=1e30, max_grad_norm=0, save_steps=100))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": "nowhere.txt"}, "no file or folder nowhere.txt"),
        ({"data": "nowhere"}, "no file or folder nowhere"),
        ({"block_size": 65}, "block_size is 65.* 64"),
        ({"model": "./nowhere"}, "no model at './nowhere'"),
        ({"lora": {"target_modules": ["q_proj"]}}, "q_proj.*c_attn"),
        ({"lr_scheduler_type": "sideways"}, "sideways"),
        ({"report_to": ["no-such-logger"]}, "no-such-logger"),
    ],
)
def test_bad_input_leaves_nothing_behind(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match=said):
        train(settings(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recomputed_blocks_change_nothing_in_a_run(method: str, tmp_path: Path):
    def losses(out: str, **settings: Any) -> list[float]:
        record = train(run_config(tmp_path, out, method=method, prompts=[], **settings))
        return [point.loss for point in record.loss_curve]

    assert losses("kept", recompute="none") == losses("recomputed", recompute="blocks")


def test_a_soft_prompt_cannot_be_recomputed(tmp_path: Path):
    with pytest.raises(ValueError, match="recompute"):
        run_config(tmp_path, method="prompt-tuning", recompute="blocks")


@pytest.mark.parametrize("held_out", ["none", 0])
def test_nothing_is_held_out(held_out: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = run_config(tmp_path, held_out=held_out, validation="auto")
    record = train(config)
    assert (record.status, record.evaluations, record.kept_step) == ("finished", [], 4)
    assert record.data is not None
    assert (record.data.held_out.documents, record.data.train.documents) == (0, 4)
    assert "nothing is held out" in capsys.readouterr().err
    page = report_page(record, tmp_path / "run")
    assert "Nothing is held out" in page
    assert "There is no evaluation" not in page
    print_summary(record, tmp_path / "run" / "report.html")
    shown = capsys.readouterr().out
    assert "Nothing is held out" in shown
    assert "┏" not in shown
    with pytest.raises(TsugikiError, match="held_out is none"):
        run_all({"one": config})
