"""`--model file.gguf` through the command line."""

from pathlib import Path

import pytest

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.tiny import TEXT, logits
from tsugiki.base import load_model

TRAIN = ("--max-steps", "2", "--block-size", "32", "--target-modules", "q_proj")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama", intermediate_size=64), Kind.Q8_0))


def test_train_generate_evaluate_and_merge_on_a_gguf_file(run, model: str, tmp_path: Path):
    once = "converting tiny.gguf"
    status, _, said = run("train", "--model", model, "--data", "text.txt", "--out", "run", *TRAIN)
    assert status == 0, said
    assert said.count(once) == 1
    adapted = ("--model", model, "--adapter", "run")
    status, text, said = run("generate", *adapted, "--prompt", "第1", "--max-new-tokens", "3")
    assert status == 0, said
    assert text.startswith("第1")
    assert once not in said
    status, table, said = run("eval", *adapted, "--data", "text.txt")
    assert status == 0, said
    assert "tiny.gguf" in table
    status, _, said = run("merge", *adapted, "--out", "merged")
    assert status == 0, said
    assert not logits(load_model("merged")).equal(logits(load_model(model)))
    status, _, said = run("preview", "--model", model, "--data", "text.txt")
    assert status == 0, said
