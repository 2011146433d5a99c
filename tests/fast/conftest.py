"""Fixtures for tests of the attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.fast import attention


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that block attention computed, instead of the plain definition."""
    made: list[torch.Size] = []
    function = attention._BlockAttention

    def apply(*given: Any) -> Tensor:
        made.append(given[0].shape)
        return function.apply(*given)

    monkeypatch.setattr(attention, "_BlockAttention", SimpleNamespace(apply=apply))
    return made
