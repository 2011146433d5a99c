"""Names of dtypes, promotion to float32, and what this machine computes in."""

from typing import get_args

import pytest
import torch

from tsugiki.dtypes import (
    BaseDtype,
    SaveDtype,
    at_least_float32,
    preferred_compute_dtype,
    processor_has_bf16,
    torch_dtype,
)


def test_every_name_of_the_settings_is_a_torch_dtype_but_those_of_few_bits():
    names = {*get_args(BaseDtype), *get_args(SaveDtype)} - {"nf4", "nf4-int8"}
    found = {name: torch_dtype(name) for name in names}
    assert found == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}


def test_trained_weights_are_float32_or_float64():
    assert at_least_float32(torch.float64) == torch.float64
    assert {at_least_float32(dtype) for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.int8)} == {torch.float32}


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_the_processor_decides_without_a_gpu(avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert processor_has_bf16() == (avx512 or amx)
    assert preferred_compute_dtype() == ("bf16" if avx512 or amx else "fp32")


@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_gpu_decides_where_there_is_one(kind: str, supported: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device(kind))
    monkeypatch.setattr(f"torch.{kind}.is_bf16_supported", lambda including_emulation: supported)
    assert preferred_compute_dtype() == ("bf16" if supported else "fp16")
    processor = preferred_compute_dtype(torch.device("cpu"))
    assert processor == ("bf16" if processor_has_bf16() else "fp32")


@pytest.mark.parametrize("supported", [False, True])
def test_a_mac_is_tried(supported: bool, monkeypatch: pytest.MonkeyPatch):
    def ones(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if not supported:
            raise TypeError("BFloat16 is not supported on MPS")
        return torch.full(shape, 1, dtype=dtype)

    monkeypatch.setattr("torch.ones", ones)
    assert preferred_compute_dtype(torch.device("mps")) == ("bf16" if supported else "fp32")
