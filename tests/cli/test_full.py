"""`tsugiki train --method full` from the command line."""

from pathlib import Path

import pytest

from tests.tiny import TEXT, save_tiny


@pytest.fixture(autouse=True)
def _text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)


def test_full_training_and_a_model_to_go_on_with(run, tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    small = ("--data", "text.txt", "--max-steps", "2", "--block-size", "32", "--learning-rate", "0.001")
    status, out, err = run("train", "--model", base, *small, "--method", "full", "--out", "full")
    assert status == 0, err
    assert "model: full (" in out
    assert "(100.00%)" in err
    assert run("generate", "--model", "full", "--prompt", "枝", "--max-new-tokens", "4")[0] == 0
    assert run("train", "--model", "full", *small, "--r", "2", "--out", "adapter")[0] == 0
