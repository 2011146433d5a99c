"""The choice between integer and float products, by measuring."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import run_config
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.io import cache_folder, measurements
from tsugiki.lowbit import exact_integers, integers_are_faster, quantized_layer
from tsugiki.training import train

INTEGERS, FLOATS = {"int8": 1.0, "float": 2.0}, {"int8": 2.0, "float": 1.0}


class Measured:
    """Stands for measuring: returns these seconds, and counts its calls."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, dtype: torch.dtype) -> dict[str, float]:
        self.calls += 1
        return self.seconds


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measurements, "_decided", {})


def _as_in_a_new_process(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured(seconds)
    measurements._decided.clear()
    monkeypatch.setattr(quantized_layer, "measure", measured)
    return measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_measured(dtype: torch.dtype):
    threads = torch.get_num_threads()
    seconds = quantized_layer.measure(dtype)
    assert seconds.keys() == {"int8", "float"}
    assert all(0 < each < float("inf") for each in seconds.values())
    assert torch.get_num_threads() == threads


def test_the_answer_is_measured_once_for_each_dtype_and_kept(monkeypatch: pytest.MonkeyPatch):
    measured = _as_in_a_new_process(FLOATS, monkeypatch)
    assert not integers_are_faster(torch.bfloat16)
    assert not integers_are_faster(torch.bfloat16)
    measured.seconds = INTEGERS
    assert integers_are_faster(torch.float32)
    assert measured.calls == 2
    again = _as_in_a_new_process(INTEGERS, monkeypatch)
    assert not integers_are_faster(torch.bfloat16)
    assert again.calls == 0
    monkeypatch.setattr(measurements, "processor_name", lambda: "another processor")
    measurements._decided.clear()
    assert integers_are_faster(torch.bfloat16)


@pytest.mark.skipif(not exact_integers(), reason="only floats are multiplied here")
def test_a_run_records_the_dtype_and_keeps_it_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _as_in_a_new_process(FLOATS, monkeypatch)
    config = run_config(tmp_path, base_dtype="nf4", max_steps=1)
    name = preferred_compute_dtype()
    assert train(config).resolved_settings["product_dtype"] == name
    shutil.rmtree(cache_folder("machine"))
    _as_in_a_new_process(INTEGERS, monkeypatch)
    assert train(config.model_copy(update={"max_steps": 2}), resume=True).resolved_settings["product_dtype"] == name
    measurements._decided.clear()
    other = run_config(tmp_path, base_dtype="nf4", max_steps=1, out=str(tmp_path / "other"))
    assert train(other).resolved_settings["product_dtype"] == "int8"
