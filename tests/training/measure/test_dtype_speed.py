"""The choice between 8-bit integers and floats for a base, if the settings leave it open."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import interrupt, run_config, tiny_base
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.lowbit import exact_integers
from tsugiki.training import (
    RunConfig,
    faster_dtype,
    find_shapes,
    leaves_dtype_open,
    read_record,
    rows_at_once,
    seconds_of_dtypes,
    train,
)
from tsugiki.training.measure import dtype_speed, facts, memory_plan

needs_both = pytest.mark.skipif(
    preferred_compute_dtype(torch.device("cpu")) != "bf16" or not exact_integers(),
    reason="the processor does not multiply bfloat16 and integers",
)


@pytest.fixture(autouse=True)
def _measure_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_speed, "SMALL_MODEL", 0)
    monkeypatch.setattr(facts, "SMALL_MODEL", 0)


def _let_integers_take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the measurement: floats take a second. Returns the list of its calls."""
    calls: list[Any] = []

    def measure(*arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        return {"bf16": 1.0, "int8": seconds}

    monkeypatch.setattr(dtype_speed, "_measure_dtypes", measure)
    return calls


def shapes_of(config: RunConfig) -> Any:
    return find_shapes(config.model, config.block_size, config.virtual_tokens)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_a_sample_of_each_dtype_and_two_rows_at_once_are_measured(kind: str, tmp_path: Path):
    config = run_config(tmp_path, model=tiny_base(tmp_path, kind))
    threads = torch.get_num_threads()
    dtypes = seconds_of_dtypes(config, shapes_of(config))
    rows = dtype_speed._measure_rows(config, shapes_of(config), "fp32")
    assert (dtypes.keys(), rows.keys()) == ({"bf16", "int8"}, {"one by one", "at once"})
    assert all(0 < each < math.inf for each in [*dtypes.values(), *rows.values()])
    assert torch.get_num_threads() == threads


def _let_two_rows_take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement: one by one they take a second."""
    monkeypatch.setattr(dtype_speed, "_measure_rows", lambda *_: {"one by one": 1.0, "at once": seconds})
    monkeypatch.setattr(dtype_speed, "rows_of_micro_batch", lambda tokens, adapter: 1)  # as for rows of 512 tokens


def test_a_run_computes_two_rows_at_once_where_they_are_faster_and_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_two_rows_take(0.9, monkeypatch)
    config = run_config(tmp_path, base_dtype="fp32", batch_size=4)
    interrupt(train, config, 1)
    _let_two_rows_take(2.0, monkeypatch)
    monkeypatch.setattr(dtype_speed, "kept_seconds", lambda key, measure: measure())  # an empty cache
    record = train(config, resume=True)
    assert record.micro_batch_size == 2
    alone = train(run_config(tmp_path, "alone", base_dtype="fp32", batch_size=4))
    assert alone.micro_batch_size is None
    for one, other in zip(record.loss_curve, alone.loss_curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_two_rows_at_once_leave_no_thread_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_two_rows_take(0.9, monkeypatch)
    config = run_config(tmp_path)
    shapes = shapes_of(config)
    for batch_size, threads, expected in ((1, 1, None), (3, 3, None), (6, 2, None), (4, 2, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert rows_at_once(config, shapes, "fp32", batch_size) == expected
    monkeypatch.setattr(memory_plan, "memory_for_process", lambda device: 1_100_000_000)
    assert rows_at_once(config, shapes, "fp32", 4) is None  # they might not fit


def test_integers_must_be_clearly_faster():
    assert [faster_dtype({"bf16": 1.0, "int8": seconds}) for seconds in (0.8, 0.95)] == ["int8", "bf16"]


@needs_both
def test_the_times_are_measured_once_for_each_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = _let_integers_take(0.5, monkeypatch)
    config, other = run_config(tmp_path), run_config(tmp_path, lora={"r": 3})
    for given, count in ((config, 1), (config, 1), (other, 2)):
        assert seconds_of_dtypes(given, shapes_of(given)) == {"bf16": 1.0, "int8": 0.5}
        assert len(calls) == count


@needs_both
def test_a_resumed_run_goes_on_with_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    _let_integers_take(0.5, monkeypatch)
    config = run_config(tmp_path)
    interrupt(train, config, 2)
    _let_integers_take(2.0, monkeypatch)
    monkeypatch.setattr(dtype_speed, "kept_seconds", lambda key, measure: measure())  # an empty cache
    record = train(config, resume=True)
    assert record.resolved_settings["base_dtype"] == "int8"
    assert record.base_dtype_seconds == {"bf16": 1.0, "int8": 0.5}
    assert "base in int8: a sample of it trains 2.0 times as fast" in capsys.readouterr().err
    assert read_record(Path(config.out)).config.base_dtype is None, "the settings stay as they were given"
    again = train(run_config(tmp_path, "explicit", base_dtype="int8"))
    assert [point.loss for point in again.loss_curve] == [point.loss for point in record.loss_curve]
    assert train(run_config(tmp_path, "other", max_steps=1)).resolved_settings["base_dtype"] == "bf16"


def test_only_the_dtype_of_plain_lora_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dtype_speed, "exact_integers", lambda: True)
    monkeypatch.setattr(dtype_speed, "preferred_compute_dtype", lambda device: "bf16")
    assert leaves_dtype_open(run_config(tmp_path))
    for settings in ({"base_dtype": "bf16"}, {"method": "full"}, {"method": "houlsby"}):
        assert not leaves_dtype_open(run_config(tmp_path, **settings)), settings
    for lora in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"bias": "all"}):
        assert not leaves_dtype_open(run_config(tmp_path, lora=lora)), lora
    for name, value in (("preferred_compute_dtype", lambda device: "fp32"), ("exact_integers", lambda: False)):
        with monkeypatch.context() as patch:
            patch.setattr(dtype_speed, name, value)
            assert not leaves_dtype_open(run_config(tmp_path)), name


def test_small_and_quantised_models_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = _let_integers_take(0.5, monkeypatch)
    config = run_config(tmp_path)
    shapes = shapes_of(config)
    with monkeypatch.context() as patch:
        patch.setattr(dtype_speed, "SMALL_MODEL", 50_000_000)
        assert seconds_of_dtypes(config, shapes) is None
    shapes.config.quantization_config = {"quant_method": "fp8"}
    assert seconds_of_dtypes(config, shapes) is None
    assert not calls


@needs_both
def test_a_model_that_cannot_be_measured_is_trained_in_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(dtype_speed, "_measure_dtypes", fail)
    record = train(run_config(tmp_path, max_steps=1))
    assert record.resolved_settings["base_dtype"] == "bf16"
    assert record.base_dtype_seconds is None
