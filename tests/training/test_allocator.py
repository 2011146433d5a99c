import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from tsugiki.training.allocator import keep_freed_memory

def faults():
    torch.ones(8 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
print(without, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    without, kept = map(int, subprocess.check_output([sys.executable, "-c", _FAULTS], text=True).split())
    assert without > 10 * kept
