"""`tsugiki export` of an adapter, through the command line: files, and one line for each bad input."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.files import contents
from tests.tiny import save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.adapters import read_lora_weights
from tsugiki.base import load_model
from tsugiki.base.gguf.file import read_header

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adapter(base: str, folder: str, **fields: Any) -> None:
    save_grafted(folder, load_model(base), LoraConfig(**{"r": 2, "lora_alpha": 4, **fields}))


@pytest.fixture
def base(tmp_path: Path) -> str:
    base = save_tiny(tmp_path / "base", "llama")
    adapter(base, "a")
    return base


def refused(run: Any, *arguments: str) -> str:
    """The one line of a command that fails, and leaves everything as it was."""
    before = contents(Path())
    status, out, error = run(*arguments)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert contents(Path()) == before
    return str(error)


def test_an_export_names_its_base_and_is_not_imported(run: Any, base: str):
    status, out, _ = run("export", "a", "--gguf", "a.gguf")
    assert status == 0
    assert "a.gguf: 14 layers, rank 2, alpha 4" in out
    assert "llama-cli -m BASE --lora a.gguf" in out
    assert not Path("a.Modelfile").exists(), "Ollama takes no adapters"
    named, metadata = read_lora_weights(Path("a")).base, read_header(Path("a.gguf")).metadata
    assert metadata["general.base_model.0.name"] == named.name
    assert metadata["tsugiki.base.fingerprint"] == named.fingerprint
    said = refused(run, "adapters", "import", "a.gguf", "--model", base, "--out", "./b")
    assert "import the adapter that it was made from" in said


def test_rejected_exports(run: Any, base: str, tmp_path: Path):
    gpt2 = save_tiny(tmp_path / "gpt2", "gpt2")
    opt = save_tiny(tmp_path / "opt", "opt")
    adapter(base, "dora", use_dora=True)
    adapter(base, "head", modules_to_save=["lm_head"])
    adapter(gpt2, "positions", target_modules=["wpe", "wte"])
    adapter(opt, "of-opt")
    assert "DoRA" in refused(run, "export", "dora", "--gguf", "x.gguf")
    assert "(lm_head.weight)" in refused(run, "export", "head", "--gguf", "x.gguf")
    assert "position_embd" in refused(run, "export", "positions", "--gguf", "x.gguf")
    assert "opt" in refused(run, "export", "of-opt", "--gguf", "x.gguf")
    assert "--allow-base-mismatch" in refused(run, "export", "a", "--gguf", "x.gguf", "--model", gpt2)
    assert "down_proj" in refused(run, "export", "a", "--gguf", "x.gguf", "--model", gpt2, "--allow-base-mismatch")
    assert "no" in refused(run, "export", "a", "--gguf", "no/x.gguf")
    assert ".gguf" in refused(run, "export", "a", "--gguf", "x.bin")
    assert "nothing" in refused(run, "export", "nothing", "--gguf", "x.gguf")
    assert run("export", "a", "--gguf", "x.gguf")[0] == 0
    assert "x.gguf" in refused(run, "export", "a", "--gguf", "x.gguf")


def _kept(run: Any) -> str:
    assert run("export", "a", "--gguf", "kept.gguf")[0] == 0
    return "kept.gguf"


def test_an_adapter_that_llama_cpp_can_load_merged_alone(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tied head has no adapter there: the error begins with --merged, which a terminal offers."""
    adapter(save_tiny(tmp_path / "base"), "tied", target_modules=["c_attn", "lm_head"])
    said = refused(run, "export", "tied", "--gguf", "x.gguf")
    assert said.startswith("tsugiki: pass --merged")
    assert "lm_head" in said
    for typed, status in (("n\n", 1), ("\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert run("export", "tied", "--gguf", "x.gguf")[0] == status
        assert Path("x.gguf").is_file() == (status == 0)
    assert "output.weight" in {tensor.name for tensor in read_header(Path("x.gguf")).tensors}


class Terminal(io.StringIO):
    """Text that is typed in a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_full_disk_leaves_nothing(run: Any, base: str, monkeypatch: pytest.MonkeyPatch):
    import gguf

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    assert "x.gguf: No space left on device" in refused(run, "export", "a", "--gguf", "x.gguf")
