"""Comparisons: one budget, runs that are reused or resumed, and comparisons that are refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.report.pages import Page
from tests.runs import counted_runs
from tests.training.workflows.comparisons import SETTINGS, write
from tsugiki import TsugikiError
from tsugiki.cli.main import main
from tsugiki.training import compare, comparison_rows, load_comparison, read_record
from tsugiki.training.workflows import compare as comparison_module

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
        ({"methods": {"a": {"batch_size": 5, "seed": 3}}}, "methods.a: batch_size, seed"),
        ({"methods": {}}, "methods"),
        ({"methods": {"a/b": {}}}, "'a/b'"),
        ({"methods": {"a": {"rank": 5}}}, "rank: unknown setting"),
        ({"methods": {"a": {"method": "lola"}}}, "method: .*lora"),
        ({"methods": {"a": {}}, "settings": {"bananas": 1}}, "bananas: unknown setting"),
        ({"methods": {"a": {}}, "banana": 1}, "banana: unknown setting"),
        ({"methods": {"a": {"lora": {"r": 0}}}}, "r is 0"),
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


def test_a_folder_that_cannot_be_written():
    Path("file").write_text("")
    with pytest.raises(TsugikiError, match="file/c"):
        compare(load_comparison(write("c.yaml", settings=SETTINGS, methods=METHODS), {"out": "file/c"}))
