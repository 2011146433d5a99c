"""Every entry of the benchmark of generation generates, and stops when requested."""

from pathlib import Path

import pytest
from benchmarks.speed.entries import load_function
from benchmarks.speed.generation import ENTRIES, PROMPT
from benchmarks.speed.workload import StopRequested, Workload

from tests.benchmarks.speed.test_entries import Script
from tests.tiny import save_tiny


@pytest.mark.parametrize("name", ENTRIES)
def test_generation(name: str, tmp_path: Path):
    if ENTRIES[name].missing:
        pytest.skip(f"{ENTRIES[name].missing[0]} is not installed")
    script, folder = Script(), save_tiny(tmp_path / "base", n_positions=128)
    with pytest.raises(StopRequested):
        load_function(ENTRIES[name].function)(Workload(folder, batch=1, length=PROMPT), script.barrier)
    assert len(script.messages) == 3
