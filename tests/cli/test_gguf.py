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


def test_files_that_are_not_gguf_models(run, model: str, tmp_path: Path, cache: Path):
    content = Path(model).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:5000])
    (tmp_path / "text.gguf").write_text("a text")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    write_gguf(tmp_path / "adapter.gguf", tiny_base("llama"), settings={"general.type": "adapter"})
    expected = {
        "cut.gguf": "truncated",
        "text.gguf": "not a GGUF file",
        "empty.gguf": "not a GGUF file",
        "folder.gguf": "config.json",
        "adapter.gguf": "--model",
        "nowhere.gguf": "no such file",
    }
    for name, fact in expected.items():
        status, out, err = run("generate", "--model", name, "--prompt", "a")
        assert (status, out) == (2, "")
        assert err.startswith("tsugiki: ")
        assert err.count("\n") == 1
        assert name in err
        assert fact in err
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
