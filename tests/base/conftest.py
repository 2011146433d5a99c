"""Fixtures of the tests of base models."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a tiny GPT-2."""
    return Path(save_tiny(tmp_path / "base"))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The folder of a tiny Llama."""
    return Path(save_tiny(tmp_path / "llama", "llama"))
