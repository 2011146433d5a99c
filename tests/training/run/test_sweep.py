"""Sweeps over methods and grids: one budget, runs that share a base, are reused or resumed, changed inputs, errors."""

import shutil
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.errors import refused
from tests.files import edit_json, json_of, write_rows
from tests.report import pages
from tests.runs import counted_runs
from tests.tiny import TEXT, save_tiny
from tsugiki.cli.main import main
from tsugiki.training import (
    MAX_RUNS,
    RunConfig,
    RunRecord,
    SweepConfig,
    check_same_inputs,
    finished,
    load_settings,
    needed_rank,
    read_record,
    run_all,
    sweep,
    train,
)
from tsugiki.training.run import scores
from tsugiki.training.run import sweep as several
from tsugiki.training.run.sweep import change

SETTINGS = {"max_steps": 3, "batch_size": 2, "block_size": 32, "held_out": 0.3, "sample_tokens": 4}


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a tiny base, twelve records and a text of retention data into the working directory."""
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{i} " + TEXT[i * 100 : i * 100 + 90 + i]} for i in range(12)]
    write_rows("d.jsonl", texts)
    Path("own.txt").write_text(TEXT[500:700])
    save_tiny(tmp_path / "base")


def write(**fields: Any) -> Path:
    settings = {"model": "base", "data": "d.jsonl", "out": "c", **fields}
    Path("c.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    return Path("c.yaml")


METHODS: dict[str, Any] = {
    "full": {"method": "full", "learning_rate": 1e-3},
    "lora r=2": {"lora": {"r": 2, "lora_alpha": 4}, "learning_rate": 1e-2},
}


def run_methods(**fields: Any) -> None:
    sweep(load_settings(SweepConfig, write(**fields), {}))


def test_methods_share_budget_and_text_and_their_families_are_told(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    methods = {**METHODS, "norms": {"method": "norms", "learning_rate": 1e-2}}
    settings = {**SETTINGS, "max_steps": 1, "retention_data": "own.txt", "prompts": ["枝"]}
    path = write(data="nowhere", settings=settings, methods=methods)
    monkeypatch.setattr(sys, "argv", ["tsugiki", "sweep", str(path), "--data", "d.jsonl"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "selective" in capsys.readouterr().out
    records = {name: read_record(Path("c", name)) for name in methods}
    written = {row["name"]: row for row in json_of("c/sweep.json")["points"]}
    for name, row in written.items():
        (weights,) = Path("c", name).glob("*model*.safetensors")
        assert row["file_size"] == weights.stat().st_size
        assert row["trainable"] == sum(t.numel() for t in load_file(weights).values())
    full, lora = written["full"], written["lora r=2"]
    assert full["share"] == 1
    assert lora["share"] < 0.2
    # The base of an adapter may be in bfloat16.
    assert full["perplexity_before"] == pytest.approx(lora["perplexity_before"], rel=1e-3)
    before, after = full["retention_losses"]
    assert before == pytest.approx(lora["retention_losses"][0], rel=1e-3)
    assert after != before
    assert len({finished(record)[0].tokens for record in records.values()}) == 1
    page = pages.Page(Path("c/report.html").read_text(encoding="utf-8"))
    families = {"full": "full fine-tuning", "lora r=2": "reparametrised", "norms": "selective"}
    cells = [row[0] for row in page.table("method")[1:]]
    assert cells == [f"{name}\n{family}" for name, family in families.items()]


def test_finished_runs_are_reused_cut_ones_go_on_and_other_settings_are_named(monkeypatch: pytest.MonkeyPatch):
    runs = counted_runs(monkeypatch)
    settings = {**SETTINGS, "max_steps": 1, "prompts": []}
    run_methods(settings=settings, methods=METHODS)
    assert runs == [("full", False), ("lora r=2", False)]
    lora = Path("c/lora r=2/adapter_model.safetensors")
    written = lora.stat().st_mtime_ns
    edit_json("c/full/run.json", status="running")
    run_methods(settings=settings, methods=METHODS)
    assert runs[2:] == [("full", True)]
    assert lora.stat().st_mtime_ns == written
    assert read_record(Path("c/full")).status == "finished"
    changed = {**METHODS, "full": {"method": "full", "learning_rate": 1e-4}}
    with refused(r"full: c/full .*learning_rate \(was 0.001"):
        run_methods(settings=settings, methods=changed)
    with refused("^none: .*matches no layer"):
        run_methods(settings=settings, methods={"none": {"lora": {"target_modules": ["q"]}}})


def grid(out: str, **axes: list[Any]) -> SweepConfig:
    settings = {**SETTINGS, "max_steps": 2, "prompts": [], "lora": {"lora_alpha": 4}, "learning_rate": 1e-2}
    return load_settings(SweepConfig, write(settings=settings, grid=axes, out=out), {})


def test_a_sweep_loads_once_and_each_point_is_a_run_of_its_own():
    config = grid("c", r=[1, 2], learning_rate=[1e-2, 1e-3])
    with mock.patch.object(several, "load_base", wraps=several.load_base) as loading:
        points, again = sweep(config), sweep(config)
    assert loading.call_count == 1, "nothing is loaded where all is done"
    assert [(one.values["r"], one.values["learning_rate"]) for one in points] == [*product((1, 2), (1e-2, 1e-3))]
    assert len({point.record.evaluations[0].loss for point in points}) == 1, "each begins from the base"
    runs = [points[3], *sweep(grid("alone", r=[2], learning_rate=[1e-3]))]
    alone, together = ((one.record.folder() / "adapter_model.safetensors").read_bytes() for one in runs)
    assert alone == together
    assert [point.loss for point in again] == [point.loss for point in points]
    assert change(points[0], points[0]).relative == 0
    assert needed_rank(points) is not None
    assert needed_rank(points[:2]) is None


AXES = ("r", "lora_alpha", "init_lora_weights")
MANY = {f"x{number}": 1 for number in range(1000)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": {"a": {"epochs": 5}}}, "methods.a: epochs"),
        ({"methods": {"../a": {}}}, "cannot be the name of a folder"),
        ({"methods": {"a": {}}, "settings": {"bananas": 1}}, "bananas: unknown setting"),
        ({"methods": {"a": {}}, "banana": 1}, "banana: unknown setting"),
        ({"methods": {"a": {}}, "grid": {"r": [1]}}, "either methods.* or grid"),
        ({}, "either methods.* or grid"),
        ({"grid": {"r": []}}, "grid.r has no values"),
        ({"methods": {f"m{number}": {} for number in range(MAX_RUNS + 1)}}, "methods: .*1000"),
        ({"methods": {"a": {"lora": MANY}}}, "x0, .* and 995 more: no such setting"),
        ({"grid": {}}, "either methods.* or grid"),
        ({"grid": {"rank": [1]}}, "grid.rank: .*learning_rate"),
        ({"grid": {"r": [1, 1]}}, "r=1"),
        ({"grid": {axis: list(range(100)) for axis in AXES}}, "1,000,000 points"),
        ({"grid": {"target_modules": [["../../a"]]}}, "grid: .*cannot be the name of a folder"),
    ],
)
def test_sweeps_that_cannot_be(fields: dict[str, Any], said: str):
    with refused(said) as caught:
        sweep(load_settings(SweepConfig, write(**fields), {}))
    assert len(str(caught.value)) < 2000
    assert not Path("c").exists()


def append(path: str) -> None:
    Path(path).write_text(Path(path).read_text() + '{"text": "枝"}\n')


def change_weights() -> None:
    path = Path("base/model.safetensors")
    tensors = load_file(path)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


CHANGES: Mapping[str, tuple[Callable[[], None], str]] = {
    "d.jsonl": (lambda: append("d.jsonl"), "d.jsonl"),
    "held.txt": (lambda: append("held.txt"), "other data"),
    "own.txt": (lambda: append("own.txt"), "other data"),
    "base/tokenizer.json": (lambda: edit_json("base/tokenizer.json", normalizer={"type": "Lowercase"}), "tokenizer"),
    "base/model.safetensors": (change_weights, "base has changed"),
    "base/config.json": (lambda: edit_json("base/config.json", layer_norm_epsilon=0.5), "base has changed"),
}
"""A file -> how to change it, and what the error says."""


def test_results_on_changed_inputs_are_not_mixed(monkeypatch: pytest.MonkeyPatch):
    def run() -> None:
        shared = {**SETTINGS, "max_steps": 1, "prompts": [], "retention_data": "own.txt", "held_out": "held.txt"}
        run_methods(settings=shared, methods={"one": {"lora": {"r": 1}}, "two": {}})

    runs = counted_runs(monkeypatch)
    Path("held.txt").write_text("枝の花が咲いた。")
    run()
    count = len(runs)
    kept, again = Path("c/one"), Path("c/two")
    shutil.rmtree(again)
    before = (kept / "run.json").read_bytes()
    for path, (make_change, fact) in CHANGES.items():
        content = Path(path).read_bytes()
        make_change()
        with refused(rf"^one: .*{fact}.*delete"):
            run()
        Path(path).write_bytes(content)
        assert not (again / "run.json").exists(), path
    assert len(runs) == count, "nothing was trained"
    assert (kept / "run.json").read_bytes() == before
    run()
    assert (kept / "run.json").read_bytes() == before
    assert read_record(again).status == "finished", "the inputs are as before, although they were written again"


def test_records_of_two_inputs_are_not_put_into_one_table():
    """Also if the inputs were changed while the runs were going on."""
    one, other = pages.record(), {"fingerprint": "sha256:other"}
    check_same_inputs({"one": one, "other": pages.record()})
    data = one.data.model_copy(update={"held_out": one.data.held_out.model_copy(update=other)})
    for name, value in (("data", data), ("base", one.base.model_copy(update=other))):
        with refused(f"^other: .*{name}.* since one "):
            check_same_inputs({"one": one, "other": one.model_copy(update={name: value})})


OWN: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 2}, "learning_rate": 1e-2},
    "full": METHODS["full"],
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
    figures = record.training.model_copy(update={"seconds": 0, "tokens_per_second": 0, "peak_memory": 0})
    return record.model_copy(update={"training": figures}).to_json() | {"config": None}


@pytest.mark.slow
def test_each_run_is_what_it_is_alone(capsys: pytest.CaptureFixture[str]):
    with mock.patch.object(several, "load_base", wraps=several.load_base) as loading:
        together = run_all(configs("together"))
    loaded = [call.args[0].config.method for call in loading.call_args_list]
    said = capsys.readouterr().err
    alone = {name: train(config) for name, config in configs("alone").items()}
    for name, record in together.items():
        assert without_times(record) == without_times(alone[name]), name
        (file,) = Path("together", name).glob("*.safetensors")
        assert file.read_bytes() == Path("alone", name, file.name).read_bytes(), name
    # A base in its own dtype, one whose weights train, one for those after it, and norms in float32.
    assert loaded in (["lora", "full", "prompt-tuning", "norms"], ["lora", "full", "prompt-tuning"])
    assert all(f"{number} of 5: {name}" in said for number, name in enumerate(OWN, 1))
    assert "1 run left, about" in said


def test_the_base_is_evaluated_once():
    with mock.patch.object(scores, "evaluate", wraps=scores.evaluate) as scored:
        one, two = run_all({name: configs("c")[name] for name in ("lora", "ia3")}).values()
    assert one.evaluations[0] == two.evaluations[0]
    assert one.samples[0] == two.samples[0]
    of_base = 3 if one.validations else 2
    per_run = len(one.evaluations) + len(one.validations) + len(one.retention_evaluations)
    assert scored.call_count == 2 * per_run - of_base
