"""`tsugiki train`: a YAML file, resuming, and notes."""

from pathlib import Path

import pytest

from tests.runs import TRAIN


def test_a_yaml_file_and_resume(base: str, run, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 2\nblock_size: 32\n")
    assert run("train", "c.yaml")[0] == 0
    status, _, err = run("train", "c.yaml")
    assert (status, "--resume" in err) == (2, True)
    status, _, err = run("train", "c.yaml", "--resume")
    assert (status, "finished" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--r", "0"), "lora.r"),
        (("--target-modules", "q_proj,v_proj"), "c_attn"),
        (("--data", "binary.txt"), "binary.txt"),
        (("--data", "nowhere"), "nowhere"),
        (("--held-out", "text.txt"), "text.txt (held out: text.txt)"),
        (("--model", "./nowhere"), "./nowhere"),
        (("--model", "text.txt"), "text.txt"),
        (("--prompts", "雨" * 40), "64"),
        (("--out", "text.txt"), "text.txt"),
        (("--block-size", "1000"), "64"),
        (("missing.yaml",), "missing.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, base: str, run, tmp_path: Path
):
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\x81")
    status, out, err = run("train", "--model", base, *TRAIN, *arguments)
    errors = [line for line in err.splitlines() if line.startswith("tsugiki: ")]
    assert status == 2
    assert out == ""
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_pattern_that_the_shell_replaced_says_how_to_quote_it(base: str, run, tmp_path: Path):
    for extra in (["a.txt"], ["a.txt", "b.txt"]):
        for name in extra:
            (tmp_path / name).write_text("x")
        status, _, err = run("train", "--model", base, *TRAIN, *extra)
        assert status == 2
        assert "--data 'texts/*.txt'" in err
