"""A run is started again with other settings: what it was given goes to the form and back, without loss."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("starlette")
from tests.serve.workspace import Place, training_in, write_run
from tsugiki.serve import ApiError, RunRequest, Runs, Training
from tsugiki.serve.runs_view import SETTINGS_FILE
from tsugiki.serve.train_view import OFFERED
from tsugiki.training import RunConfig, settings_of
from tsugiki.training.settings.config import MachineSettings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these")

GIVEN: dict[str, dict[str, Any]] = {
    **{name: {name: value} for name, value in {
        "model": "other/base", "data": ["elsewhere/*.txt", "texts/a.txt"], "columns": {"instruction": "ask"},
        "drop_duplicates": True, "held_out": "author=Doe", "validation": "none", "allow_overlap": True,
        "mix": "other.txt:0.1", "assistant_turns": "last", "chat_template": "own.jinja", "system": "Be brief.",
        "block_size": 64, "add_tokens": "words.txt", "method": "dora", "base_dtype": "int8", "base_dropout": True,
        "softmax": "full", "minutes": 2.5, "epochs": 1.5, "max_steps": 8, "batch_size": 4, "learning_rate": 0.00012,
        "learning_rate_factor": 2.0,
        "lr_scheduler_type": "constant", "warmup_ratio": 0.1, "adam_beta2": 0.95, "weight_decay": 0.3,
        "max_grad_norm": 0.0, "seed": 0, "keep": "last", "patience": 5, "prompts": ["one", "two\nlines"],
        "sample_steps": 3, "sample_tokens": 9, "eval_steps": 2, "held_out_characters": 100, "retention_data": "r.txt",
        "report_to": ["wandb"], "save_steps": 2, "device": "cpu", "micro_batch_size": 1, "recompute": "blocks",
        "shard": "fsdp", "reward": ["0.5*regex:。", "field:answer"],
    }.items()},
    "preference": {"preference": "simpo"},
    "preference_settings": {"preference": "dpo", "preference_settings": {"beta": 0.2}},
    "reward_settings": {"reward": ["regex:a"], "reward_settings": {"rounds": 2}},
    "start_from": {"start_from": "adapter", "lora": {"r": 16}},
    "compute_dtype": {"method": "full", "compute_dtype": "bf16"},
    "save_dtype": {"method": "full", "save_dtype": "bf16"},
    "loraplus_lr_ratio": {"method": "lora+", "loraplus_lr_ratio": 4.0},
    "method_config": {"method": "ia3", "method_config": {"target_modules": ["c_attn"]}},
    "decay_ratio": {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.2},
    **{name: {"lora": {name: value}} for name, value in {
        "r": 4, "lora_alpha": 7.5, "target_modules": ["c_attn", "c_proj"], "exclude_modules": ["c_fc"],
        "target_parameters": ["mlp.w"], "trainable_token_indices": [1, 2], "ensure_weight_tying": True,
        "lora_bias": True, "lora_dropout": 0.25, "bias": "lora_only", "use_rslora": True, "modules_to_save": ["head"],
        "init_lora_weights": "pissa", "use_dora": True, "freeze_A": True, "layers_to_transform": [0],
        "layers_pattern": "h", "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_attn": 3.0}, "fan_in_fan_out": True,
    }.items()},
}  # fmt: skip
"""For each setting of a run, settings in which it has another value than the default."""
GIVEN["layers_pattern"]["lora"] |= {"layers_to_transform": [0]}
GIVEN["ensure_weight_tying"]["lora"] |= {"modules_to_save": ["embed_tokens"]}


def given_run(directory: Path, name: str, changes: dict[str, Any]) -> RunConfig:
    """Write the record of a run that was given some settings, and return all of its settings."""
    config = RunConfig.model_validate({"model": "embedded", "data": "texts/a.txt", "out": f"runs/{name}", **changes})
    write_run(directory, f"runs/{name}")
    path = directory / "runs" / name / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"config": config.to_record()}))
    if changes.keys() & MachineSettings.model_fields.keys():  # these change no result, and are in the page's file alone
        (path.parent / SETTINGS_FILE).write_text(json.dumps({"model": "embedded", "data": "texts/a.txt", **changes}))
    return config


def in_full(config: RunConfig) -> dict[str, Any]:
    """All settings that have an effect, apart from the folder."""
    return config.to_record() | {name: getattr(config, name) for name in MachineSettings.model_fields} | {"out": ""}


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """What starts runs below a working directory that has an adapter to begin with."""
    monkeypatch.setattr(Runs, "watch", lambda _self: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    return training_in(tmp_path)


def test_every_setting_of_a_run_is_tried():
    assert GIVEN.keys() == {one.path[-1] for one in settings_of(RunConfig)} - {"out", "trust_remote_code"}
    default = RunConfig(model="embedded", data=("texts/a.txt",), out="o")
    for setting in settings_of(RunConfig):
        if setting.path[-1] in GIVEN and setting.path[-1] not in ("r", "start_from"):
            assert setting.find(GIVEN[setting.path[-1]]) != setting.find(default.model_dump(mode="json")), setting.path


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_request_leaves_out_is_as_the_run_had_it(tmp_path: Path, training: Training, name: str):
    config = given_run(tmp_path, "first", GIVEN[name])
    filled = training.again("runs/first")
    data = {part: filled[part] for part in ("base", "texts", "uploads", "columns", "again")}
    prepared = training.prepare(RunRequest(name="second", **data))
    assert in_full(RunConfig.model_validate(prepared.given)) == in_full(config)
    shown = name in OFFERED or name in ("model", "data", "columns")
    assert (name in filled["kept"]) != shown


_FORM = """
import { readFileSync } from "node:fs";
import { asked } from "./views/train/form.js";
const { options, cases } = JSON.parse(readFileSync(0, "utf8"));
const draft = (again, changes) => ({ ...again, again, rows: "questions", ...changes });
console.log(JSON.stringify(cases.map(([again, kind, changes]) => asked(draft(again, changes), options, kind))));
"""


def sent_by_the_form(training: Training, folder: Path, cases: list[Any]) -> list[dict[str, Any]]:
    """What the page sends for cases: what it was told of an earlier run, the kind of the data, and what was changed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    page = Path(__file__).parents[2] / "src/tsugiki/serve/page"
    (folder / "views" / "train").mkdir(parents=True)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "ui.js").write_text("""globalThis.sessionStorage = { getItem: () => null };
        export const Check = 0, Field = 0, html = 0, Input = 0, t = 0, useState = 0;""")
    (folder / "views" / "train" / "form.js").write_text((page / "views/train/form.js").read_text(encoding="utf-8"))
    (folder / "main.js").write_text(_FORM)
    given = json.dumps({"options": training.options(), "cases": cases})
    shown = subprocess.run([node, str(folder / "main.js")], input=given, capture_output=True, text=True, timeout=100)
    assert not shown.stderr, shown.stderr
    return json.loads(shown.stdout)


def test_a_form_in_which_nothing_is_changed_describes_the_same_run(tmp_path: Path, training: Training):
    kinds = {name: setting.about.data[0] for name, setting in OFFERED.items()}
    configs = [given_run(tmp_path, f"of-{name}", GIVEN[name]) for name in GIVEN]
    cases = [
        (again, "prompts" if again["kept"].get("reward") else kinds.get(name, "texts"), {})
        for name, again in ((name, training.again(f"runs/of-{name}")) for name in GIVEN)
    ]
    for config, body in zip(configs, sent_by_the_form(training, tmp_path / "page", cases), strict=True):
        prepared = training.prepare(RunRequest.model_validate(body))
        assert in_full(RunConfig.model_validate(prepared.given)) == in_full(config)


def test_what_is_changed_in_the_form_replaces_what_the_run_had(tmp_path: Path, training: Training):
    given_run(tmp_path, "first", {"held_out": "none", "max_steps": 8, "weight_decay": 0.3, "drop_duplicates": True})
    again = training.again("runs/first")
    assert (again["length"], again["values"]["held_out"]) == ("max_steps", "none")
    values = again["values"] | {"held_out": "0.25", "drop_duplicates": False, "epochs": "2"}
    changes = {"length": "epochs", "values": values}
    wrong = {"values": values | {"held_out": "two"}}
    cases = [(again, "texts", changes), (again, "texts", wrong), (None, "texts", {**again, **wrong, "again": None})]
    right, *refused = sent_by_the_form(training, tmp_path / "page", cases)
    given = training.prepare(RunRequest.model_validate(right)).given
    assert {name: given.get(name) for name in ("held_out", "max_steps", "drop_duplicates", "epochs")} == {
        "held_out": 0.25, "max_steps": None, "drop_duplicates": None, "epochs": 2.0
    }  # fmt: skip
    assert given["weight_decay"] == 0.3  # the form has no field for it
    for body in refused:
        with pytest.raises(ValidationError, match="held_out"):
            RunRequest.model_validate(body)


def test_a_number_that_is_none_is_refused_in_words(place: Place):
    answer = place.post("train/settings", {"name": "a", "texts": ["a.txt"], "block_size": "１０"})
    assert answer.status_code == 400
    assert "block_size" in answer.json()["error"]["message"]


def test_a_request_names_only_data_and_a_base_that_are_listed_or_that_its_run_had(tmp_path: Path, training: Training):
    given_run(tmp_path, "first", {"model": "other/base", "data": ["/srv/texts.txt", "texts/a.txt"]})
    again = training.again("runs/first")
    assert (again["texts"], again["base"]) == (["/srv/texts.txt", "a.txt"], "other/base")
    request = RunRequest(name="second", texts=again["texts"], base=again["base"], again="runs/first")
    assert training.prepare(request).given["data"] == ["/srv/texts.txt", "texts/a.txt"]
    for wrong in ({"again": None}, {"again": None, "base": None}, {"texts": ["/etc/passwd"]}, {"base": "third/base"}):
        with pytest.raises(ApiError):
            training.prepare(request.model_copy(update=wrong))


@pytest.mark.parametrize("given", [{"trust_remote_code": True}, {"reward": ["command:judge --all"]}])
def test_a_run_that_runs_code_is_started_again_in_a_terminal(tmp_path: Path, training: Training, given: dict[str, Any]):
    given_run(tmp_path, "first", given)
    for ask in (
        lambda: training.again("runs/first"),
        lambda: training.prepare(RunRequest(name="second", texts=["a.txt"], again="runs/first")),
    ):
        with pytest.raises(ApiError, match=r"terminal.*tsugiki train.*runs/first/run\.json"):
            ask()
    with pytest.raises(ValidationError):
        RunRequest.model_validate({"name": "second", "texts": ["a.txt"], **given})


def test_the_data_of_a_run_with_a_rule_are_looked_at_as_the_rest(place: Place):
    (place.directory / "texts" / "p.jsonl").write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    given_run(place.directory, "first", {"data": "texts/p.jsonl", "reward": ["field:answer"]})
    again = place.get("train/again", name="runs/first").json()
    assert again["kept"]["reward"] == ["field:answer"]
    ask = {"name": "second", "texts": again["texts"], "base": place.running.base, "again": "runs/first"}
    shown = place.post("train/settings", ask).json()
    assert "field:answer" in shown["yaml"]
    assert "simpo" in shown["yaml"]
