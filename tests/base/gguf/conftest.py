"""Fixtures of the tests of GGUF bases."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(cache: Path) -> Path:
    """The folder that holds converted GGUF files."""
    return cache / "gguf"
