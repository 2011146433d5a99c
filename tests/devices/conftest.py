"""The pretended accelerator as a fixture."""

from collections.abc import Iterator

import pytest
from torch import nn

from tests.devices.pretend import PretendedDevice, pretended_device
from tsugiki.model import linear as frozen_layer


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    """A device without float64, in use during the test.

    Its parameters are not of the exact class `nn.Parameter`, which the fused product requires of a real device's.
    """
    monkeypatch.setattr(frozen_layer, "_is_dense", lambda weight: isinstance(weight, nn.Parameter))
    with pretended_device(float64=False) as used:
        yield used
