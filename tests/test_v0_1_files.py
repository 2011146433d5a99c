"""Files that version 0.1 wrote (`fixtures/v0_1`) are read, and the same is computed from them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny import logits
from tsugiki import TsugikiError, active_adapter, load_adapter
from tsugiki.adapters import read_metadata
from tsugiki.base import load_model
from tsugiki.cli.main import main
from tsugiki.training import PretrainConfig, RunConfig, changed_settings, pretrain, read_record, train

FILES = Path(__file__).parent / "fixtures" / "v0_1"
LOGITS = load_file(FILES / "logits.safetensors")
MODELS = ["merged", "runs/full", "runs/pretrain"]
ADAPTERS = sorted(LOGITS.keys() - {"ids", "base", *MODELS})
RUNS = ["lora", "lora+", "houlsby", "full", "pretrain"]
STOPPED = ["lora", "full", "pretrain"]

RENAMED_SETTINGS = {
    "frozen": "base_dtype",
    "arithmetic": "compute_dtype",
    "stored": "save_dtype",
    "own_text": "retention_data",
    "adapter": "method_config",
}
"""Settings of a run in version 0.1 -> what they are called now."""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the working directory, since the paths in them are relative."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tsugiki(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `tsugiki …`, which must succeed, and return its standard output."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tsugiki", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        status: Any = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert not status, err
        return out

    return call


SAVE_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def current(settings: Any) -> Any:
    """Settings of version 0.1 under the names of today, at every depth."""
    if not isinstance(settings, dict):
        return settings
    if "stored" in settings:
        settings = {**settings, "stored": SAVE_DTYPES[settings["stored"]]}
    if "grad_accum" in settings:
        rows = settings["batch_size"] * settings["grad_accum"]
        settings = {name: rows if name == "batch_size" else settings[name] for name in settings if name != "grad_accum"}
    names = dict(RENAMED_SETTINGS)
    for kind in ("warmup", "decay"):
        if settings.get(f"{kind}_steps", 1) < 1:  # a share of all steps
            names[f"{kind}_steps"] = f"{kind}_ratio"
    return {names.get(name, name): current(value) for name, value in settings.items()}


RATES = {"houlsby": 1e-3, "prompt-tuning": 3e-2}
"""The default learning rates of version 0.1; that of other methods was 1e-4."""


def settings(name: str) -> dict[str, Any]:
    """The settings of a run, with version 0.1's defaults."""
    found = current(yaml.safe_load(Path(f"configs/{name}.yaml").read_text(encoding="utf-8")))
    if name.endswith("pretrain"):
        return found
    for own in found.get("methods", {}).values():
        own.setdefault("learning_rate", RATES.get(own.get("method"), 1e-4))
    shared = found.get("settings", found)
    shared |= {"validation": "none", "learning_rate": shared.get("learning_rate", RATES.get(found.get("method"), 1e-4))}
    return found


def config(name: str) -> RunConfig | PretrainConfig:
    kind = PretrainConfig if name.endswith("pretrain") else RunConfig
    return kind.model_validate(settings(name))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for the rounding of other processors."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_out():
    assert {path.name for path in (FILES / "adapters").iterdir()} <= set(ADAPTERS)
    assert {path.name for path in (FILES / "runs").iterdir()} == set(RUNS)
    assert {path.name for path in (FILES / "stopped").iterdir()} == set(STOPPED)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_gives_the_same_logits(name: str):
    model = load_model("base")
    assert_same(logits(model, LOGITS["ids"]), LOGITS["base"])
    load_adapter(model, name if "/" in name else f"adapters/{name}")
    assert_same(logits(model, LOGITS["ids"]), LOGITS[name])
    assert not torch.allclose(LOGITS[name], LOGITS["base"], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_same_logits(name: str):
    assert_same(logits(load_model(name), LOGITS["ids"]), LOGITS[name])


def test_settings_that_peft_does_not_have_are_read():
    """`tsugiki.json` tells how an adapter is to be trained further, where PEFT's file cannot."""
    lora_fa = active_adapter(load_adapter(load_model("base"), "adapters/lora-fa"))
    assert lora_fa.config.freeze_A
    pissa = active_adapter(load_adapter(load_model("base"), "adapters/pissa"))
    assert (pissa.config.r, pissa.config.lora_alpha) == (2, 8)
    stored = load_file("adapters/pissa/adapter_model.safetensors")
    assert all(
        2 * pair.A.shape[0] == stored[f"base_model.model.{path}.lora_A.weight"].shape[0]
        for path, pair in pissa.pairs.items()
    )


def test_the_provenance_of_adapters_and_merged_models_is_read():
    combined = read_metadata(Path("library/both")).provenance
    assert combined is not None
    assert combined.operation == "combine"
    assert combined.settings["rank"] == 3
    assert [(source.name, source.weight) for source in combined.sources] == [("lora", 0.7), ("lora+", 0.3)]
    merged = read_metadata(Path("merged"))
    assert merged.base.name == "base"
    assert merged.provenance is not None
    assert merged.provenance.operation == "merge"
    assert merged.provenance.sources[0].weights


def test_the_fingerprint_of_a_base_is_the_same():
    with pytest.raises(TsugikiError, match="another base"):
        load_adapter(load_model("merged"), "adapters/lora")


@pytest.mark.parametrize("name", RUNS)
def test_the_record_of_a_run_is_read(name: str):
    stored = json.loads(Path(f"runs/{name}/run.json").read_text(encoding="utf-8"))
    record = read_record(Path("runs") / name)
    assert record.status == "finished"
    now = config(name).to_record()
    assert changed_settings(record.config.to_dict(), now) == ""
    assert {
        key for key in record.config.to_dict().keys() ^ now.keys() if not key.startswith(("warmup_", "decay_"))
    } == set()
    assert [entry.loss for entry in record.evaluations] == [entry["loss"] for entry in stored["evaluations"]]
    retention = [entry["loss"] for entry in stored["own_evaluations"]]
    assert [entry.loss for entry in record.retention_evaluations] == retention
    assert len(retention) == (2 if name in ("lora", "full") else 0)
    assert [sample.model_dump() for sample in record.samples] == stored["samples"]
    assert [point.model_dump() for point in record.loss_curve] == stored["loss_curve"]
    assert record.parameters.trainable == stored["parameters"]["trainable"]
    assert record.data.train.model_dump() == stored["data"]["train"]


@pytest.mark.parametrize(
    ("folder", "facts"),
    [
        ("runs/lora", ["20.59", "253.2", "1,408", "fp32", "c_attn", "own.txt", "0.72%"]),
        ("runs/lora+", ["20.50", "259.7", "1,024", "int8", "c_fc", "author=B", "warmup_stable_decay"]),
        ("runs/houlsby", ["20.80", "267.9", "296", "fp32", "reduction_factor"]),
        ("runs/full", ["20.78", "266.6", "11,728", "fp32", "fp16"]),
        ("runs/pretrain", ["3.205", "368.3", "10,224", "fp32", "n_embd"]),
        ("stopped/lora", ["20.09", "221.3", "704", "step 5 of 8"]),
        ("comparison/prompt-tuning", ["20.81", "num_virtual_tokens"]),
    ],
)
def test_the_report_of_a_run_is_written(folder: str, facts: list[str], tsugiki: Any):
    tsugiki("report", folder)
    page = Path(folder, "report.html").read_text(encoding="utf-8")
    assert [fact for fact in facts if fact not in page] == []


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_is_resumed_to_the_same_weights(name: str):
    run = config(f"stopped-{name}")
    begun = read_record(Path(run.out))
    assert begun.status == "running"
    record = pretrain(run, resume=True) if isinstance(run, PretrainConfig) else train(run, resume=True)
    assert record.status == "finished"
    assert [entry.step for entry in record.loss_curve] == list(range(1, run.max_steps + 1))
    assert record.evaluations[0] == begun.evaluations[0]
    assert len(record.retention_evaluations) == (2 if name == "lora" else 0)
    weights = "adapter_model" if name == "lora" else "model"
    ours = load_file(Path(run.out) / f"{weights}.safetensors")
    theirs = load_file(f"resumed/{name}.safetensors")
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype
        if name == "lora":  # with dropout, of which version 0.1 drew other masks
            assert (ours[key] - theirs[key]).norm() < 0.1 * theirs[key].norm(), key
        else:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("command", "folder", "facts"),
    [
        ("compare", "comparison", ["prompt-tuning", "704", "268.3", "64", "269.2", "5.589", "5.637"]),
        ("sweep", "sweep", ["352", "5.5921", "20.8063", "704", "5.5920"]),
    ],
)
def test_finished_runs_of_a_comparison_are_taken_over(command: str, folder: str, facts: list[str], tsugiki: Any):
    kept = {path: path.read_bytes() for path in Path(folder).glob("*/run.json")}
    Path("now.yaml").write_text(yaml.safe_dump(settings(folder)), encoding="utf-8")
    out = tsugiki(command, "now.yaml")
    assert [fact for fact in facts if fact not in out] == []
    assert {path: path.read_bytes() for path in Path(folder).glob("*/run.json")} == kept


def test_the_library_is_listed_and_shown(tsugiki: Any):
    listed = tsugiki("adapters", "list", "--library", "library")
    for fact in ("both", "lora", "lora+", "253.2", "259.7", "2–3", "7.4 kB"):
        assert fact in listed
    made = tsugiki("adapters", "show", "both", "--library", "library")
    for fact in ("combine", "svd", "0.7", "0.3", "a96897b6ad5a", "1735c0844c96"):
        assert fact in made
    trained = tsugiki("adapters", "show", "lora", "--library", "library")
    for fact in ("text.txt", "0.01", "133", "253.2", "-5.7%"):
        assert fact in trained
    tsugiki("adapters", "verify", "lora", "lora+", "both", "--library", "library")
    assert "c_fc" in tsugiki("adapters", "diff", "lora", "lora+", "--library", "library")


def test_an_adapter_is_merged_to_the_same_weights(tsugiki: Any):
    tsugiki("merge", "--model", "base", "--adapter", "runs/lora", "--out", "again")
    ours, theirs = load_file("again/model.safetensors"), load_file("merged/model.safetensors")
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert_same(ours[key], theirs[key])


@pytest.mark.parametrize(
    ("folder", "facts"),
    [
        ("runs/lora", ["253.2", "5.593", "朝、", "4, 8", "linear", "torch 2.13.0"]),
        ("runs/lora+", ["259.7", "2, 32", "warmup_stable_decay", "43.0%"]),
        ("runs/houlsby", ["267.9", "296"]),
        ("library/both", ["1,376", "a96897b6ad5a"]),
    ],
)
def test_the_card_of_an_adapter_is_written(folder: str, facts: list[str], tsugiki: Any):
    card = tsugiki("push", folder, "user/both", "--base", "none", "--dry-run")
    assert [fact for fact in facts if fact not in card] == []
