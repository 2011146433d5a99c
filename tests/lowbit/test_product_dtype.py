"""The choice between integer and float products, by measuring."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import run_config
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.io import cache_folder, measurements
from tsugiki.lowbit import exact_integers, integers_are_faster, quantized_layer
from tsugiki.model import products
from tsugiki.training import train

INTEGERS, FLOATS = {"int8": 1.0, "float": 2.0}, {"int8": 2.0, "float": 1.0}
ONEDNN, TORCH = {"onednn": 1.0, "torch": 2.0}, {"onednn": 1.0, "torch": 1.05}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measurements, "_decided", {})


def _as_in_a_new_process(
    seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch, measured: Any = quantized_layer
) -> list[Any]:
    """Forget what is decided; from now on, these seconds are measured. The list gets each call."""
    calls: list[Any] = []
    measurements._decided.clear()
    monkeypatch.setattr(measured, "measure", lambda *given: calls.append(given) or seconds)
    return calls


def test_the_answer_is_measured_once_for_each_dtype_and_kept(monkeypatch: pytest.MonkeyPatch):
    calls = _as_in_a_new_process(FLOATS, monkeypatch)
    assert not integers_are_faster(torch.bfloat16)
    assert not integers_are_faster(torch.bfloat16)
    assert not integers_are_faster(torch.float32)
    assert calls == [(torch.bfloat16,), (torch.float32,)]
    again = _as_in_a_new_process(INTEGERS, monkeypatch)
    assert not integers_are_faster(torch.bfloat16)
    assert not again
    monkeypatch.setattr(measurements, "processor_name", lambda: "another processor")
    measurements._decided.clear()
    assert integers_are_faster(torch.bfloat16)


IN_NF4 = (quantized_layer, "product_dtype", (FLOATS, preferred_compute_dtype()), (INTEGERS, "int8"))
IN_FP32 = (products, "product_library", (TORCH, "torch"), (ONEDNN, "oneDNN"))
needs_integers = pytest.mark.skipif(not exact_integers(), reason="only floats are multiplied here")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.mark.parametrize(
    ("base_dtype", "measured", "key", "first", "then"),
    [pytest.param("nf4", *IN_NF4, marks=needs_integers), pytest.param("fp32", *IN_FP32, marks=needs_onednn)],
)
def test_a_run_records_the_choice_and_keeps_it_when_it_is_resumed(
    base_dtype: Any, measured: Any, key: str, first: Any, then: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _as_in_a_new_process(first[0], monkeypatch, measured)
    config = run_config(tmp_path, base_dtype=base_dtype, max_steps=1)
    assert train(config).resolved_settings[key] == first[1]
    shutil.rmtree(cache_folder("machine"))
    _as_in_a_new_process(then[0], monkeypatch, measured)
    assert train(config.model_copy(update={"max_steps": 2}), resume=True).resolved_settings[key] == first[1]
    measurements._decided.clear()
    other = run_config(tmp_path, base_dtype=base_dtype, max_steps=1, out=str(tmp_path / "other"))
    assert train(other).resolved_settings[key] == then[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_measured(dtype: torch.dtype):
    threads = torch.get_num_threads()
    seconds = quantized_layer.measure(dtype)
    assert seconds.keys() == {"int8", "float"}
    assert all(0 < each < float("inf") for each in seconds.values())
    assert torch.get_num_threads() == threads
