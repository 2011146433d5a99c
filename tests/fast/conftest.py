"""Fixtures for tests of the attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.fast import attention


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that block attention computed, in torch or in C, instead of the plain definition."""
    made: list[torch.Size] = []

    def counted(name: str) -> None:
        function = getattr(attention, name)

        def apply(*given: Any) -> Tensor:
            made.append(given[0].shape)
            return function.apply(*given)

        monkeypatch.setattr(attention, name, SimpleNamespace(apply=apply))

    counted("_BlockAttention")
    counted("_CAttention")
    return made
