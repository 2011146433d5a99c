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
    assert (status, said.count(once)) == (0, 1), said
    adapted = ("--model", model, "--adapter", "run")
    status, text, said = run("generate", *adapted, "--prompt", "第1", "--max-new-tokens", "3")
    assert (status, text[:2], once in said) == (0, "第1", False), said
    assert "tiny.gguf" in run("eval", *adapted, "--data", "text.txt")[1]
    assert run("merge", *adapted, "--out", "merged")[0] == 0
    assert not logits(load_model("merged")).equal(logits(load_model(model)))
    assert run("preview", "--model", model, "--data", "text.txt")[0] == 0
