"""A plan of a run on the pretended device."""

from pathlib import Path

import pytest

from tests.devices.pretend import NAME, PretendedDevice
from tests.runs import run_config
from tsugiki.report import plan_lines
from tsugiki.training import memory
from tsugiki.training.planning import plan, sample


@pytest.mark.slow
def test_a_plan_is_of_the_memory_of_the_device(
    tmp_path: Path, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
):
    def of_processor(*_: object) -> None:
        pytest.fail("the memory of the processor was asked for")

    # A storage of the pretended device has no address, so its bytes cannot be counted.
    monkeypatch.setattr(sample, "_kept_bytes", lambda forward, besides: forward() and 1_000_000)
    config = run_config(tmp_path, batch_size=2)
    monkeypatch.setattr(plan, "device_type", lambda name: NAME)
    monkeypatch.setattr(memory, "_read_kilobytes", of_processor)
    device.free, device.peak = 300_000_000, 5_000_000
    found = plan.plan_run(config, None, base_dtypes=("fp32",))
    assert (found.device, found.available) == (NAME, 300_000_000)
    assert {option.micro_batch_size for option in found.options} == {1, 2}
    assert found.parts["process"] == found.parts["loading"] == 0
    assert all(option.fits and option.step_seconds > 0 for option in found.options)
    # What is needed besides what is kept is from the device's peak.
    assert found.parts["activations"] == 1_000_000 + 4_000_000
    assert sum(found.parts.values()) == found.options[0].peak_memory
    assert "accelerator (pretend)" in " ".join(plan_lines(found))
    device.free = 1000
    assert not any(option.fits for option in plan.plan_run(config, None, base_dtypes=("fp32",)).options)
