"""Fixtures that several test modules share."""

from pathlib import Path

import pytest
import torch

# The models here are tiny: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def aozora_mirror() -> Path:
    """A folder in Aozora Bunko's own layout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "aozora"
    if not (folder / "cards").is_dir():
        pytest.skip("no Aozora Bunko mirror beside the checkout")
    return folder
