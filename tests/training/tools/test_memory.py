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
    if before is not None:
        kept = torch.ones(50_000_000)
        assert (memory.resident() or 0) - before > 100_000_000
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
    device = SimpleNamespace(empty_cache=lambda: calls.append("emptied"))
    for number, name in enumerate(names, 1):
        setattr(device, name, lambda number=number: number)
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


_FAULTS = """
import resource
import torch
from tsugiki.training.tools.memory import keep_freed_memory

def faults():
    for _ in range(3):
        torch.ones(8 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
print(without, faults())
"""


# The limit comes before PyTorch is imported: threads that end during the import leave their heaps to later ones.
# The main thread allocates three times: small blocks of PyTorch's own threads may follow the first tensor in the heap,
# and then the second one lies behind them.
_FAULTS_OF_ANOTHER_THREAD = """
import resource, sys, threading
from tsugiki.training.tools.memory import keep_freed_memory, limit_heaps

if sys.argv[1] == "limited":
    limit_heaps(1)
import torch

def in_thread():
    thread = threading.Thread(target=lambda: torch.ones(20 << 20))  # 80 MB
    thread.start()
    thread.join()

keep_freed_memory()
for _ in range(3):
    torch.ones(20 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_threads_use_what_the_main_thread_has_freed_if_they_share_its_heap() -> None:
    limited, by_default = (
        int(subprocess.check_output([sys.executable, "-c", _FAULTS_OF_ANOTHER_THREAD, how], text=True))
        for how in ("limited", "default")
    )
    assert by_default > 10 * limited


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    without, kept = map(int, subprocess.check_output([sys.executable, "-c", _FAULTS], text=True).split())
    assert without > 10 * kept
