"""Moving tensors to a device."""

from typing import Any

import pytest
import torch

from tests.devices.pretend import NAME, DeviceTensor, pretended_device
from tsugiki.model import to_device


class OnHost:
    """A tensor of the processor that notes what is called."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def pin_memory(self) -> "OnHost":
        self.calls.append("pin")
        return self

    def to(self, *args: Any, **options: Any) -> "OnHost":
        self.calls.append((*args, options))
        return self


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_only_pinned_memory_is_copied_without_waiting(kind: str):
    tensor: Any = OnHost()
    device = torch.device(kind)
    to_device(tensor, device, torch.float16)
    pinned = kind == "cuda"
    assert tensor.calls == ["pin"] * pinned + [(device, torch.float16, {"non_blocking": True} if pinned else {})]


def test_the_pretended_device_refuses_copies_without_waiting_of_memory_that_is_not_pinned():
    host = torch.arange(5.0)
    with pretended_device():
        there = to_device(host, torch.device(NAME))
        assert isinstance(there, DeviceTensor)
        copies = (
            lambda: host.to(NAME, non_blocking=True),
            lambda: there.copy_(host, non_blocking=True),
            lambda: host.copy_(there, non_blocking=True),
            lambda: there.to("cpu", non_blocking=True),
        )
        for copy in copies:
            with pytest.raises(RuntimeError, match="not pinned"):
                copy()
        there.to(torch.float16, non_blocking=True)  # on the device itself
