"""Comparisons and sweeps: one budget, runs that are reused or resumed, changed inputs, and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.report.pages import Page
from tests.runs import counted_runs
from tests.training.workflows.comparisons import SETTINGS, write
from tsugiki import TsugikiError
from tsugiki.cli.main import main
from tsugiki.training import (
    MAX_RUNS,
    RunRecord,
    check_same_inputs,
    compare,
    comparison_rows,
    load_comparison,
    load_config,
    load_sweep,
    needed_rank,
    read_record,
    sweep,
    train,
)
from tsugiki.training.workflows import compare as compare_module
from tsugiki.training.workflows import compare as comparison_module
from tsugiki.training.workflows.compare import change

pytestmark = pytest.mark.usefixtures("comparison_data")

METHODS: dict[str, Any] = {
    "full": {"method": "full", "learning_rate": 1e-3},
    "lora r=2": {"lora": {"r": 2, "lora_alpha": 4}, "learning_rate": 1e-2},
}


def test_methods_share_budget_and_text_and_are_put_into_one_table():
    config = load_comparison(
        write("c.yaml", settings={**SETTINGS, "retention_data": "own.txt", "prompts": ["枝"]}, methods=METHODS), {}
    )
    records = compare(config)
    table = {row.name: row for row in comparison_rows(records)}
    assert list(table) == ["full", "lora r=2"]
    full, lora = table.values()
    assert full.share == 1
    assert lora.share < 0.2
    assert full.file_size > lora.file_size > 0
    # The base of an adapter may be in bfloat16.
    assert full.perplexity_before == pytest.approx(lora.perplexity_before, rel=1e-3)
    assert full.retention_loss_before == pytest.approx(lora.retention_loss_before, rel=1e-3)
    assert full.retention_loss_after != full.retention_loss_before
    tokens = {record.training.tokens for record in records.values()}
    assert len(tokens) == 1
    assert json.loads(Path("c/comparison.json").read_text())["rows"][1]["name"] == "lora r=2"


def test_families_are_told_in_the_table_and_coloured_in_the_plot(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    methods = {
        **METHODS,
        "norms": {"method": "norms", "learning_rate": 1e-2},
        "last": {"method": "select", "method_config": {"target_parameters": r".*\.h\.1\..*"}, "learning_rate": 1e-3},
    }
    path = write("c.yaml", data="nowhere", settings={**SETTINGS, "max_steps": 1}, methods=methods)
    monkeypatch.setattr(sys, "argv", ["tsugiki", "compare", str(path), "--data", "d.jsonl"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "selective" in capsys.readouterr().out
    table = {row["name"]: row for row in json.loads(Path("c/comparison.json").read_text())["rows"]}
    families = {"full": "full fine-tuning", "lora r=2": "reparametrised", "norms": "selective", "last": "selective"}
    assert {name: row["family"] for name, row in table.items()} == families
    for name, row in table.items():
        (weights,) = Path("c", name).glob("*model*.safetensors")
        assert row["file_size"] == weights.stat().st_size
        assert row["trainable"] == sum(t.numel() for t in load_file(weights).values())
    page = Page(Path("c/report.html").read_text(encoding="utf-8"))
    cells = [row[0] for row in page.table("method")[1:]]
    assert cells == [f"{name}\n{family}" for name, family in families.items()]
    assert "Final held-out perplexity by trainable parameters" in page.text
    for i, (name, family) in enumerate(families.items(), 1):
        assert f"{i} {name} ({family})" in page.text


def test_a_model_in_several_files_is_as_large_as_all_of_them(tmp_path: Path):
    for i, size in enumerate((100, 40)):
        (tmp_path / f"model-0000{i + 1}-of-00002.safetensors").write_bytes(b"x" * size)
    assert comparison_module._file_size(tmp_path) == 140
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 7)
    assert comparison_module._file_size(tmp_path) == 7


def test_finished_runs_are_reused_and_cut_ones_go_on(monkeypatch: pytest.MonkeyPatch):
    runs = counted_runs(monkeypatch)
    config = load_comparison(write("c.yaml", settings=SETTINGS, methods=METHODS), {})
    compare(config)
    assert runs == [("full", False), ("lora r=2", False)]
    before = {path: path.stat().st_mtime_ns for path in Path("c").rglob("*.safetensors")}
    record = json.loads(Path("c/full/run.json").read_text())
    Path("c/full/run.json").write_text(json.dumps({**record, "status": "running"}))
    compare(config)
    assert runs[2:] == [("full", True)]
    lora = next(path for path in before if "lora" in str(path))
    assert lora.stat().st_mtime_ns == before[lora]
    assert read_record(Path("c/full")).status == "finished"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": {"a": {"epochs": 5}}}, "methods.a: epochs"),
        ({"methods": {}}, "methods"),
        ({"methods": {"a/b": {}}}, "'a/b'"),
        ({"methods": {"a": {}}, "settings": {"bananas": 1}}, "bananas: unknown setting"),
        ({"methods": {"a": {}}, "banana": 1}, "banana: unknown setting"),
        ({"methods": {"a": {"lora": {"r": 0}}}}, r"lora\.r"),
    ],
)
def test_comparisons_that_cannot_be(fields: dict[str, Any], said: str):
    with pytest.raises(TsugikiError, match=said):
        compare(load_comparison(write("c.yaml", **fields), {}))
    assert not Path("c").exists()


def test_other_settings_and_failed_runs_are_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    compare(load_comparison(write("c.yaml", settings=SETTINGS, methods=METHODS), {}))
    changed = {**METHODS, "full": {"method": "full", "learning_rate": 1e-4}}
    with pytest.raises(TsugikiError, match=r"full: c/full .*learning_rate \(was 0.001"):
        compare(load_comparison(write("c.yaml", settings=SETTINGS, methods=changed), {}))
    with pytest.raises(TsugikiError, match="^none: .*matches no layer"):
        compare(
            load_comparison(
                write("c.yaml", settings=SETTINGS, methods={"none": {"lora": {"target_modules": ["q"]}}}), {}
            )
        )


def grid(**axes: list[Any]) -> Path:
    return write("s.yaml", settings={**SETTINGS, "lora": {"lora_alpha": 4}, "learning_rate": 1e-2}, grid=axes)


def test_a_sweep_loads_once_and_each_point_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch):
    loads: list[Any] = []
    plain = compare_module.load_base
    monkeypatch.setattr(compare_module, "load_base", lambda *given: loads.append(given) or plain(*given))
    config = load_sweep(grid(r=[1, 2], learning_rate=[1e-2, 1e-3]), {})
    points = sweep(config)
    assert len(loads) == 1
    assert [dict(point.values) for point in points] == [
        {"r": r, "learning_rate": rate} for r in (1, 2) for rate in (1e-2, 1e-3)
    ]
    assert len({point.record.evaluations[0].loss for point in points}) == 1, "each begins from the base"
    alone = load_sweep(grid(r=[2], learning_rate=[1e-3]), {"out": "alone"})
    weights = "adapter_model.safetensors"
    (own,) = sweep(alone)
    folders = (Path(points[3].record.config.out), Path(own.record.config.out))
    assert (folders[0] / weights).read_bytes() == (folders[1] / weights).read_bytes(), "in company as alone"
    again = sweep(config)
    assert len(loads) == 2, "nothing is loaded where all is done"
    assert [point.loss for point in again] == [point.loss for point in points]
    assert change(points[0], points[0]).relative == 0
    assert needed_rank(points) is not None
    assert needed_rank(points[:2]) is None


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "the grid is empty"),
        ({"r": []}, "grid.r has no values"),
        ({"rank": [1]}, "grid.rank: .*learning_rate"),
        ({"r": [1, 1]}, "r=1"),
        ({"r": [0]}, r"lora\.r"),
        ({"learning_rate": [-1.0]}, "learning_rate: .*greater than 0"),
    ],
)
def test_grids_that_cannot_be(axes: dict[str, list[Any]], said: str):
    with pytest.raises(TsugikiError, match=said):
        sweep(load_sweep(grid(**axes), {}))
    assert not Path("c").exists()


COMMON = {"model": "m", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grid": {axis: list(range(100)) for axis in ("r", "lora_alpha", "init_lora_weights")}}, "1,000,000 points"),
        ({"grid": {"r": [1]}, "settings": {"lora": "r"}}, "settings.lora is 'r'"),
        ({"grid": {"target_modules": [["../../a"]]}}, "grid: .*cannot be the name of a folder"),
        ({"grid": {"a" * 5000: [1]}}, "no such axis"),
        ({"grid": {"r": ["x" * 5000]}}, "r: .*integer"),
    ],
)
def test_sweeps_that_are_too_large_or_hostile(fields: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**COMMON, **fields}))
    with pytest.raises(TsugikiError, match=said) as caught:
        load_sweep(path, {}).runs()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({f"m{number}": {} for number in range(MAX_RUNS + 1)}, "methods: .*1000"),
        ({"../a": {}}, "cannot be the name of a folder"),
        ({"a": {"lora": {f"x{number}": 1 for number in range(1000)}}}, "x0, .* and 995 more: no such setting"),
        ({"a": {f"x{number}": 1 for number in range(1000)}}, "x0: unknown setting; .*995 more problems"),
    ],
)
def test_comparisons_that_are_too_large_or_hostile(methods: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({**COMMON, "methods": methods}, sort_keys=False))
    with pytest.raises(TsugikiError, match=said) as caught:
        load_comparison(path, {}).runs()
    assert len(str(caught.value)) < 2000


SHARED = {**SETTINGS, "max_steps": 1, "retention_data": "own.txt", "held_out": "held.txt"}


def run_sweep() -> None:
    sweep(load_sweep(write("s.yaml", settings=SHARED, grid={"r": [1, 2]}), {}))


def run_comparison() -> None:
    compare(load_comparison(write("c.yaml", settings=SHARED, methods={"one": {"lora": {"r": 1}}, "two": {}}), {}))


def append(path: str) -> None:
    Path(path).write_text(Path(path).read_text() + '{"text": "枝"}\n')


def change_weights() -> None:
    path = Path("base/model.safetensors")
    tensors = load_file(path)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


def change_json(path: str, **values: Any) -> None:
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **values}))


CHANGES: Mapping[str, tuple[Callable[[], None], str]] = {
    "d.jsonl": (lambda: append("d.jsonl"), "d.jsonl"),
    "held.txt": (lambda: append("held.txt"), "other data"),
    "own.txt": (lambda: append("own.txt"), "other data"),
    "base/tokenizer.json": (lambda: change_json("base/tokenizer.json", normalizer={"type": "Lowercase"}), "tokenizer"),
    "base/model.safetensors": (change_weights, "base has changed"),
    "base/config.json": (lambda: change_json("base/config.json", layer_norm_epsilon=0.5), "base has changed"),
}
"""A file -> how to change it, and what the error says."""


@pytest.mark.parametrize(
    ("run", "names"),
    [pytest.param(run_sweep, ("r=1", "r=2"), marks=pytest.mark.slow), (run_comparison, ("one", "two"))],
)
def test_results_on_changed_inputs_are_not_mixed(
    run: Callable[[], None], names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    runs = counted_runs(monkeypatch)
    Path("held.txt").write_text("梅の花が咲いた。")
    run()
    count = len(runs)
    kept, again = Path("c", names[0]), Path("c", names[1])
    shutil.rmtree(again)
    before = (kept / "run.json").read_bytes()
    for path, (make_change, fact) in CHANGES.items():
        content = Path(path).read_bytes()
        make_change()
        with pytest.raises(TsugikiError, match=rf"^{names[0]}: .*{fact}.*delete"):
            run()
        Path(path).write_bytes(content)
        assert not (again / "run.json").exists(), path
    assert len(runs) == count, "nothing was trained"
    assert (kept / "run.json").read_bytes() == before
    run()
    assert (kept / "run.json").read_bytes() == before
    assert read_record(again).status == "finished", "the inputs are as before, although they were written again"


@pytest.mark.parametrize("what", ["data", "base"])
def test_records_of_two_inputs_are_not_put_into_one_table(what: str):
    """Also if the inputs were changed while the runs were going on."""
    run_of_data = load_config(
        None, {**SETTINGS, "max_steps": 1, "model": "base", "data": "d.jsonl", "out": "one"}, {"r": 1}
    )
    record = train(run_of_data)
    other = record.model_copy(deep=True)
    check_same_inputs({"one": record, "other": other})
    _change(other, what)
    with pytest.raises(TsugikiError, match=f"^other: .*{what}.* since one "):
        check_same_inputs({"one": record, "other": other})
    assert read_record(Path("one")).data == record.data


def _change(record: RunRecord, what: str) -> None:
    assert record.data is not None
    assert record.base is not None
    if what == "data":
        record.data.held_out.fingerprint = "sha256:other"
    else:
        record.base = record.base.model_copy(update={"fingerprint": "sha256:other"})
