"""`--model file.gguf` through the command line."""

from pathlib import Path

import pytest

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.tiny import TEXT, logits
from tsugiki.base.loading import load_model

TRAIN = ("--max-steps", "2", "--block-size", "32", "--target-modules", "q_proj")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama", intermediate_size=64), Kind.Q8_0))


def test_a_whole_life_on_a_gguf_file(run, model: str, tmp_path: Path):
    once = "unpacking tiny.gguf (0 MB); later starts are quick"
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


def test_what_is_no_gguf_model(run, model: str, tmp_path: Path, cache: Path):
    content = Path(model).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:5000])
    (tmp_path / "text.gguf").write_text("a text")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    write_gguf(tmp_path / "adapter.gguf", tiny_base("llama"), settings={"general.type": "adapter"})
    expected = {
        "cut.gguf": "tsugiki: cut.gguf is cut short or damaged: it ends within its header; fetch it again",
        "text.gguf": "tsugiki: text.gguf is no GGUF file: it does not begin with the letters GGUF",
        "empty.gguf": "tsugiki: empty.gguf is no GGUF file: it does not begin with the letters GGUF",
        "folder.gguf": "tsugiki: folder.gguf is no model folder: it has no config.json",
        "adapter.gguf": "tsugiki: adapter.gguf is no base model: it is an adapter: give its base as --model",
        "nowhere.gguf": "tsugiki: no model at 'nowhere.gguf': there is no such file",
    }
    for name, line in expected.items():
        assert run("generate", "--model", name, "--prompt", "a") == (2, "", line + "\n")
    assert not cache.exists()
