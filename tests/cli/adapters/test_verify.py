"""`tsugiki adapters verify`."""

from pathlib import Path

from tests.adapters.folders import write


def test_verify_says_everything_and_then_fails(run, two: Path):
    weights = two / "soseki" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (two / "akutagawa" / "adapter_config.json").write_text("{}")
    write(two / "whole")
    status, out, err = run("adapters", "verify")
    assert status == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["akutagawa", "soseki", "whole"]
    assert err == "tsugiki: 2 of 3 adapters have problems\n"
    assert run("adapters", "verify", "whole")[0] == 0
