"""The memory that the benchmark reports."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tsugiki.training.tools import memory


def test_of_a_process_on_the_processor():
    assert not torch.accelerator.is_available()
    memory.reset_peak()
    before, peak = memory.resident(), memory.peak()
    kept = torch.ones(50_000_000)
    assert before is None or memory.resident() - before > 100_000_000
    del kept
    assert peak is None or peak > 10_000_000


@pytest.mark.parametrize(
    ("names", "free"),
    [
        (("memory_allocated", "max_memory_allocated"), True),  # CUDA, XPU
        (("current_allocated_memory", "driver_allocated_memory"), False),  # MPS
    ],
)
def test_of_an_accelerator(names: tuple[str, str], free: bool, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    device = SimpleNamespace(empty_cache=lambda: calls.append("emptied"), **{names[0]: lambda: 1, names[1]: lambda: 2})
    if free:
        device.mem_get_info = lambda: (3, 4)
        device.reset_peak_memory_stats = lambda: calls.append("reset")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda: device)
    assert (memory.resident(), memory.peak()) == (1, 2)
    assert (memory.available() == 3) == free
    memory.reset_peak()
    assert calls == ["emptied", *(["reset"] if free else [])]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_the_process_that_started_this_one_does_not_count():
    large = bytearray(b"x") * 400_000_000
    code = "from tsugiki.training.tools.memory import process_peak; print(process_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(done.stdout) < len(large)


# The limit comes before PyTorch is imported: threads that end during the import leave their heaps to later ones.
# The main thread allocates three times: small blocks of PyTorch's own threads may follow the first tensor in the heap,
# and then the second one lies behind them.
_FAULTS = """
import resource, sys, threading
from tsugiki.training.tools.memory import keep_freed_memory, limit_heaps

if sys.argv[1] == "limited":
    limit_heaps(1)
import torch

def faults(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def allocate(times=1):
    for _ in range(times):
        torch.ones(20 << 20)  # 80 MB

def in_thread():
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()

allocate(3)
freed = faults(allocate)
keep_freed_memory()
allocate(3)
print(freed, faults(allocate), faults(in_thread))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again_also_by_threads_if_they_share_a_heap() -> None:
    limited, by_default = (
        [int(count) for count in subprocess.check_output([sys.executable, "-c", _FAULTS, how], text=True).split()]
        for how in ("limited", "default")
    )
    for freed, kept, _ in (limited, by_default):
        assert freed > 10 * kept
    assert by_default[2] > 10 * limited[2]
