"""Comparisons and sweeps: one budget, runs that share a base, are reused or resumed, changed inputs, and errors."""

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
from tests.tiny import TEXT, save_tiny
from tsugiki import TsugikiError
from tsugiki.cli.main import main
from tsugiki.training import (
    MAX_RUNS,
    ComparisonConfig,
    RunConfig,
    RunRecord,
    SweepConfig,
    check_same_inputs,
    compare,
    comparison_rows,
    finished,
    load_config,
    load_settings,
    needed_rank,
    read_record,
    run_all,
    sweep,
    train,
)
from tsugiki.training.run import scores, several
from tsugiki.training.run.compare import change

SETTINGS = {"max_steps": 3, "batch_size": 2, "block_size": 32, "held_out": 0.3, "sample_tokens": 4}


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a tiny base, twelve records and a text of retention data into the working directory."""
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{i} " + TEXT[i * 100 : i * 100 + 90 + i]} for i in range(12)]
    Path("d.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    Path("own.txt").write_text(TEXT[500:700])
    save_tiny(tmp_path / "base")


def write(name: str, **fields: Any) -> Path:
    path = Path(name)
    settings = {"model": "base", "data": "d.jsonl", "out": "c", **fields}
    path.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    return path


METHODS: dict[str, Any] = {
    "full": {"method": "full", "learning_rate": 1e-3},
    "lora r=2": {"lora": {"r": 2, "lora_alpha": 4}, "learning_rate": 1e-2},
}


def run_methods(path: Path) -> None:
    compare(load_settings(ComparisonConfig, path, {}))


def run_grid(path: Path) -> None:
    sweep(load_settings(SweepConfig, path, {}))


def test_methods_share_budget_and_text_and_their_families_are_told(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    methods = {
        **METHODS,
        "norms": {"method": "norms", "learning_rate": 1e-2},
        "last": {"method": "select", "method_config": {"target_parameters": r".*\.h\.1\..*"}, "learning_rate": 1e-3},
    }
    settings = {**SETTINGS, "max_steps": 1, "retention_data": "own.txt", "prompts": ["枝"]}
    path = write("c.yaml", data="nowhere", settings=settings, methods=methods)
    monkeypatch.setattr(sys, "argv", ["tsugiki", "compare", str(path), "--data", "d.jsonl"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "selective" in capsys.readouterr().out
    records = {name: read_record(Path("c", name)) for name in methods}
    table = {row.name: row for row in comparison_rows(records)}
    written = {row["name"]: row for row in json.loads(Path("c/comparison.json").read_text())["rows"]}
    assert written == {name: row.model_dump(mode="json") for name, row in table.items()}
    families = {"full": "full fine-tuning", "lora r=2": "reparametrised", "norms": "selective", "last": "selective"}
    assert {name: row.family for name, row in table.items()} == families
    for name, row in table.items():
        (weights,) = Path("c", name).glob("*model*.safetensors")
        assert row.file_size == weights.stat().st_size
        assert row.trainable == sum(t.numel() for t in load_file(weights).values())
    full, lora = table["full"], table["lora r=2"]
    assert full.share == 1
    assert lora.share < 0.2
    # The base of an adapter may be in bfloat16.
    assert full.perplexity_before == pytest.approx(lora.perplexity_before, rel=1e-3)
    assert full.retention_loss_before == pytest.approx(lora.retention_loss_before, rel=1e-3)
    assert full.retention_loss_after != full.retention_loss_before
    assert len({finished(record)[0].tokens for record in records.values()}) == 1
    page = Page(Path("c/report.html").read_text(encoding="utf-8"))
    cells = [row[0] for row in page.table("method")[1:]]
    assert cells == [f"{name}\n{family}" for name, family in families.items()]


def test_finished_runs_are_reused_and_cut_ones_go_on(monkeypatch: pytest.MonkeyPatch):
    runs = counted_runs(monkeypatch)
    settings = {**SETTINGS, "prompts": []}
    config = load_settings(ComparisonConfig, write("c.yaml", settings=settings, methods=METHODS), {})
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


def test_other_settings_and_failed_runs_are_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    settings = {**SETTINGS, "max_steps": 1, "prompts": []}
    run_methods(write("c.yaml", settings=settings, methods=METHODS))
    changed = {**METHODS, "full": {"method": "full", "learning_rate": 1e-4}}
    with pytest.raises(TsugikiError, match=r"full: c/full .*learning_rate \(was 0.001"):
        run_methods(write("c.yaml", settings=settings, methods=changed))
    with pytest.raises(TsugikiError, match="^none: .*matches no layer"):
        run_methods(write("c.yaml", settings=settings, methods={"none": {"lora": {"target_modules": ["q"]}}}))


def grid(**axes: list[Any]) -> Path:
    settings = {**SETTINGS, "max_steps": 2, "prompts": [], "lora": {"lora_alpha": 4}, "learning_rate": 1e-2}
    return write("s.yaml", settings=settings, grid=axes)


def test_a_sweep_loads_once_and_each_point_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch):
    loads: list[Any] = []
    plain = several.load_base
    monkeypatch.setattr(several, "load_base", lambda *given: loads.append(given) or plain(*given))
    config = load_settings(SweepConfig, grid(r=[1, 2], learning_rate=[1e-2, 1e-3]), {})
    points = sweep(config)
    assert len(loads) == 1
    assert [dict(point.values) for point in points] == [
        {"r": r, "learning_rate": rate} for r in (1, 2) for rate in (1e-2, 1e-3)
    ]
    assert len({point.record.evaluations[0].loss for point in points}) == 1, "each begins from the base"
    alone = load_settings(SweepConfig, grid(r=[2], learning_rate=[1e-3]), {"out": "alone"})
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


AXES = ("r", "lora_alpha", "init_lora_weights")
MANY = {f"x{number}": 1 for number in range(1000)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": {"a": {"epochs": 5}}}, "methods.a: epochs"),
        ({"methods": {"../a": {}}}, "cannot be the name of a folder"),
        ({"methods": {"a": {}}, "settings": {"bananas": 1}}, "bananas: unknown setting"),
        ({"methods": {"a": {}}, "banana": 1}, "banana: unknown setting"),
        ({"methods": {"a": {"lora": {"r": 0}}}}, r"lora\.r"),
        ({"methods": {f"m{number}": {} for number in range(MAX_RUNS + 1)}}, "methods: .*1000"),
        ({"methods": {"a": {"lora": MANY}}}, "x0, .* and 995 more: no such setting"),
        ({"grid": {}}, "the grid is empty"),
        ({"grid": {"rank": [1]}}, "grid.rank: .*learning_rate"),
        ({"grid": {"r": [1, 1]}}, "r=1"),
        ({"grid": {axis: list(range(100)) for axis in AXES}}, "1,000,000 points"),
        ({"grid": {"r": [1]}, "settings": {"lora": "r"}}, "settings.lora is 'r'"),
        ({"grid": {"target_modules": [["../../a"]]}}, "grid: .*cannot be the name of a folder"),
    ],
)
def test_comparisons_and_sweeps_that_cannot_be(fields: dict[str, Any], said: str):
    path, run = write("c.yaml", **fields), run_grid if "grid" in fields else run_methods
    with pytest.raises(TsugikiError, match=said) as caught:
        run(path)
    assert len(str(caught.value)) < 2000
    assert not Path("c").exists()


SHARED = {**SETTINGS, "max_steps": 1, "prompts": [], "retention_data": "own.txt", "held_out": "held.txt"}


def run_sweep() -> None:
    run_grid(write("s.yaml", settings=SHARED, grid={"r": [1, 2]}))


def run_comparison() -> None:
    run_methods(write("c.yaml", settings=SHARED, methods={"one": {"lora": {"r": 1}}, "two": {}}))


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


def test_records_of_two_inputs_are_not_put_into_one_table():
    """Also if the inputs were changed while the runs were going on."""
    given = {**SETTINGS, "max_steps": 1, "model": "base", "data": "d.jsonl", "out": "one"}
    record = train(load_config(None, given, {"r": 1}))
    assert record.data is not None
    assert record.base is not None
    check_same_inputs({"one": record, "other": record.model_copy(deep=True)})
    counts = record.data.held_out.model_copy(update={"fingerprint": "sha256:other"})
    changes = {
        "data": record.data.model_copy(update={"held_out": counts}),
        "base": record.base.model_copy(update={"fingerprint": "sha256:other"}),
    }
    for name, changed in changes.items():
        with pytest.raises(TsugikiError, match=f"^other: .*{name}.* since one "):
            check_same_inputs({"one": record, "other": record.model_copy(update={name: changed})})


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
    load = several.load_base
    monkeypatch.setattr(
        several, "load_base", lambda start, *given: loaded.append(start.config.method) or load(start, *given)
    )
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
    evaluate = scores.evaluate
    monkeypatch.setattr(scores, "evaluate", lambda *given: scored.append(len(given[2])) or evaluate(*given))
    runs = {name: configs("c")[name] for name in ("lora", "ia3")}
    records = run_all(runs)
    one, two = records.values()
    assert one.evaluations[0] == two.evaluations[0]
    assert one.samples[0] == two.samples[0]
    of_base = 3 if one.validations else 2
    per_run = len(one.evaluations) + len(one.validations) + len(one.retention_evaluations)
    assert len(scored) == 2 * per_run - of_base
