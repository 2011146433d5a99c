"""`tsugiki export` of an adapter, through the command line."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.adapters import read_lora_weights
from tsugiki.base import load_model
from tsugiki.base.gguf.file import read_header

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adapter(base: str, folder: str, **fields: Any) -> None:
    save_grafted(folder, load_model(base), LoraConfig(**{"r": 2, "lora_alpha": 4, **fields}))


def test_an_export_names_its_base_and_is_not_imported(run: Any, tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    adapter(base, "a")
    status, out, _ = run("export", "a", "--gguf", "a.gguf")
    assert status == 0
    assert "a.gguf: 14 layers, rank 2, alpha 4" in out
    assert "llama-cli -m BASE --lora a.gguf" in out
    assert not Path("a.Modelfile").exists(), "Ollama takes no adapters"
    named, metadata = read_lora_weights(Path("a")).base, read_header(Path("a.gguf")).metadata
    assert metadata["general.base_model.0.name"] == named.name
    assert metadata["tsugiki.base.fingerprint"] == named.fingerprint
    status, _, err = run("adapters", "import", "a.gguf", "--model", base, "--out", "./b")
    assert (status, "import the adapter that it was made from" in err) == (2, True)


def test_an_adapter_that_llama_cpp_can_load_merged_alone(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tied head has no adapter there: the error begins with --merged, which a terminal offers."""
    adapter(save_tiny(tmp_path / "base"), "tied", target_modules=["c_attn", "lm_head"])
    status, _, err = run("export", "tied", "--gguf", "x.gguf")
    assert (status, err.startswith("tsugiki: pass --merged"), "lm_head" in err) == (2, True, True)
    for typed, status in (("n\n", 1), ("\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert run("export", "tied", "--gguf", "x.gguf")[0] == status
        assert Path("x.gguf").is_file() == (status == 0)
    assert "output.weight" in {tensor.name for tensor in read_header(Path("x.gguf")).tensors}


class Terminal(io.StringIO):
    """Text that is typed in a terminal."""

    def isatty(self) -> bool:
        return True
