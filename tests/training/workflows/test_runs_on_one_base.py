"""Runs that share a base and data in one process give what each gives alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.workflows.comparisons import SETTINGS
from tsugiki import TsugikiError
from tsugiki.io import ADAPTER_FILE
from tsugiki.training import RunConfig, RunRecord, evaluation_callback, run_all, train
from tsugiki.training.workflows import compare as compare_module

pytestmark = pytest.mark.usefixtures("comparison_data")

OWN: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 2}, "learning_rate": 1e-2},
    "full": {"method": "full", "learning_rate": 1e-3},
    "prompt": {"method": "prompt-tuning", "method_config": {"num_virtual_tokens": 3}},
    "ia3": {"method": "ia3"},
    "norms": {"method": "norms"},
}


def configs(folder: str, **changes: Any) -> dict[str, RunConfig]:
    shared = {**SETTINGS, "max_steps": 2, "retention_data": "own.txt", "prompts": ["枝"], **changes}
    return {
        name: RunConfig(model="base", data="d.jsonl", out=f"{folder}/{name}", **{**shared, **own})
        for name, own in OWN.items()
    }


def without_times(record: RunRecord) -> dict[str, Any]:
    assert record.training is not None
    figures = record.training.model_copy(update={"seconds": 0, "tokens_per_second": 0, "peak_memory": 0})
    return record.model_copy(update={"training": figures}).to_json() | {"config": None}


@pytest.mark.slow
def test_each_run_is_what_it_is_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    loaded: list[str] = []
    load = compare_module.load_base
    monkeypatch.setattr(compare_module, "load_base", lambda run: loaded.append(run.config.method) or load(run))
    together = run_all(configs("together"))
    said = capsys.readouterr().err
    alone = {name: train(config) for name, config in configs("alone").items()}
    for name, record in together.items():
        assert without_times(record) == without_times(alone[name]), name
        files = [list(Path(folder, name).glob("*.safetensors")) for folder in ("together", "alone")]
        assert [[path.read_bytes() for path in found] for found in files[:1]] == [
            [path.read_bytes() for path in found] for found in files[1:]
        ]
    # A base in its own dtype, one whose weights train, one for those after it, and norms in float32.
    assert loaded in (["lora", "full", "prompt-tuning", "norms"], ["lora", "full", "prompt-tuning"])
    for number, name in enumerate(OWN, 1):
        assert f"{number} of 5: {name}" in said
        assert f"{name}: held-out loss" in said
    assert "4 runs left, about" in said
    assert "1 run left, about" in said


def test_the_base_is_evaluated_once(monkeypatch: pytest.MonkeyPatch):
    scored: list[int] = []
    evaluate = evaluation_callback.evaluate
    monkeypatch.setattr(
        evaluation_callback, "evaluate", lambda *given: scored.append(len(given[2])) or evaluate(*given)
    )
    runs = {name: configs("c")[name] for name in ("lora", "ia3")}
    records = run_all(runs)
    one, two = records.values()
    assert one.evaluations[0] == two.evaluations[0]
    assert one.samples[0] == two.samples[0]
    of_base = 3 if one.validations else 2
    per_run = len(one.evaluations) + len(one.validations) + len(one.retention_evaluations)
    assert len(scored) == 2 * per_run - of_base


@pytest.mark.slow
def test_an_error_names_its_run_and_the_others_are_kept():
    wrong = RunConfig(model="base", data="d.jsonl", out="c/none", lora={"target_modules": ["q"]}, **SETTINGS)
    runs = {"ia3": configs("c", retention_data=None, prompts=())["ia3"], "none": wrong}
    with pytest.raises(TsugikiError, match="^none: .*matches no layer"):
        run_all(runs)
    assert Path("c/ia3", ADAPTER_FILE).is_file()
    assert not Path("c/none", ADAPTER_FILE).exists()
