import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from tsugiki.train.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {keep}:
    keep_freed_memory()
torch.ones(8 << 20)
before = faults()
for _ in range(10):
    torch.ones(8 << 20)
print(faults() - before)
"""


def _faults(keep: bool) -> int:
    return int(subprocess.check_output([sys.executable, "-c", _FAULTS.format(keep=keep)], text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    assert _faults(keep=False) > 10 * _faults(keep=True)
