"""A table has results of one text and one base only: what a finished run was trained on must be what is there now."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.runs import counted_runs
from tests.training.workflows.comparisons import SETTINGS, write
from tsugiki import TsugikiError
from tsugiki.training import (
    RunRecord,
    check_same_inputs,
    compare,
    load_comparison,
    load_config,
    load_sweep,
    read_record,
    sweep,
    train,
)

pytestmark = pytest.mark.usefixtures("comparison_data")

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
    for path, (change, fact) in CHANGES.items():
        content = Path(path).read_bytes()
        change()
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
