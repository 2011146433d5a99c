"""Fixtures of the tests of `tsugiki adapters`."""

from pathlib import Path

import pytest
import torch

from tests.adapters.folders import write
from tests.report.pages import record
from tsugiki import LoraConfig, graft, save_adapter
from tsugiki.base import load_model


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def two(library: Path) -> Path:
    record().write(write(library / "soseki", 1))
    write(library / "akutagawa", 2)
    return library


@pytest.fixture
def pair(base: str, library: Path) -> tuple[str, str]:
    """Adapters "a" and "b" in the library, of ranks 4 and 6."""
    for name, rank in (("a", 4), ("b", 6)):
        model = load_model(base)
        torch.manual_seed(rank)
        graft(model, LoraConfig(r=rank, target_modules=["c_attn", "c_proj"], init_lora_weights=False))
        save_adapter(model, library / name)
    return "a", "b"
