"""`tsugiki adapters verify`."""

from pathlib import Path

from tests.adapters.folders import write
from tests.tiny import TEXT, save_tiny


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


def test_what_another_program_refuses_is_said_before_training_and_after(run, tmp_path: Path, library: Path):
    base = save_tiny(tmp_path / "base", "llama")
    (tmp_path / "text.txt").write_text(TEXT)
    settings = f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 1\nblock_size: 32\n"
    (tmp_path / "plain.yaml").write_text(settings)
    (tmp_path / "dora.yaml").write_text(settings + "method: dora\n")
    before = ("adapters", "verify", "plain.yaml", "--for")
    assert run(*before, "llama.cpp")[:2] == run(*before, "peft")[:2] == (0, "plain.yaml: nothing is wrong\n")
    status, out, err = run("adapters", "verify", "dora.yaml", "--for", "llama.cpp")
    assert (status, err) == (2, "tsugiki: 1 of 1 adapters have problems\n")
    assert "DoRA" in out
    assert "pass --for" in run("adapters", "verify", "dora.yaml")[2]
    assert run("train", "dora.yaml")[0] == 0
    assert "magnitudes of DoRA" in run("adapters", "verify", "./run", "--for", "llama.cpp")[1]
    assert run("adapters", "verify", "./run", "--for", "peft")[:2] == (0, "./run: nothing is wrong\n")
