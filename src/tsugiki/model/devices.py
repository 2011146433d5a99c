"""Moving tensors from the memory of the processor to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return the tensor on `device`, and in another dtype if one is given, without waiting for the device if possible.

    Only pinned memory may be freed or written again while it is still being copied, and only CUDA's is pinned here. So
    the copy to any other device is finished when this returns.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, dtype, non_blocking=True)
    return tensor.to(device, dtype)
