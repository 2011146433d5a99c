"""Weights in huge pages: the same numbers at the same addresses."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tsugiki.generation.scheduler import use_huge_pages

_PAGE = 2 << 20


def _huge_bytes(tensor: torch.Tensor) -> int:
    """Return how many bytes of the memory around a tensor are in huge pages."""
    address, total, inside = tensor.data_ptr() + tensor.nbytes // 2, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            total += int(line.split()[1]) << 10
    return total


def _can_collapse() -> bool:
    """Return whether this machine makes huge pages of ordinary ones."""
    if not Path("/proc/self/smaps").exists():
        return False
    memory = torch.ones(4 * _PAGE, dtype=torch.uint8)
    first = -(-memory.data_ptr() // _PAGE) * _PAGE
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(2 * _PAGE), 25) == 0


@pytest.mark.skipif(not _can_collapse(), reason="Linux 6.1 or newer, with huge pages")
def test_weights_are_in_huge_pages():
    layer = nn.Linear(2048, 2048)
    weight, address = layer.weight.detach().clone(), layer.weight.data_ptr()
    before = _huge_bytes(layer.weight)
    use_huge_pages(layer)
    assert _huge_bytes(layer.weight) > before + layer.weight.nbytes // 2
    assert layer.weight.data_ptr() == address
    assert torch.equal(layer.weight, weight)


def test_mapped_small_and_absent_weights_stay_where_they_are(tmp_path: Path):
    file = tmp_path / "weight"
    file.write_bytes(bytes(4 * _PAGE))
    mapped, small = nn.Linear(1, 1), nn.Linear(3, 5)
    mapped.weight.data = torch.from_file(str(file), size=_PAGE).view(2048, 1024)
    use_huge_pages(nn.Sequential(mapped, small, nn.Linear(3, 5, device="meta"), nn.Dropout()))
    assert not mapped.weight.any()
    assert small(torch.ones(3)).shape == (5,)
