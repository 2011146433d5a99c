"""The pretended accelerator as a fixture."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.devices.pretend import PretendedDevice, pretended_device
from tsugiki.lora import frozen_layer, masks


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    """A device without float64, in use during the test.

    Two things cannot be pretended: its parameters are not of the exact class `nn.Parameter`, which the fused product
    requires of a real device's, and it has no generators.
    """
    monkeypatch.setattr(frozen_layer, "_is_dense", lambda weight: isinstance(weight, nn.Parameter))
    monkeypatch.setattr(masks, "_generator", lambda device, seed: torch.Generator().manual_seed(seed))
    with pretended_device(float64=False) as used:
        yield used
