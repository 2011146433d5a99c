"""`tsugiki export` of an adapter, through the command line."""

import io
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.adapters import read_lora_weights
from tsugiki.base import load_model
from tsugiki.base.gguf.file import read_header
from tsugiki.base.resolve import gguf_of_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adapter(base: str, folder: str, **fields: Any) -> None:
    save_grafted(folder, load_model(base), LoraConfig(**{"r": 2, "lora_alpha": 4, **fields}))


def test_an_export_names_its_base(run: Any, tmp_path: Path):
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


def test_an_adapter_that_llama_cpp_can_load_merged_alone(run: Any, monkeypatch: pytest.MonkeyPatch):
    """A tied head has no adapter there: the error begins with --merged, which a terminal offers."""
    adapter("embedded", "tied", target_modules=["c_attn", "lm_head"])
    status, _, err = run("export", "tied", "--gguf", "x.gguf")
    assert (status, err.startswith("tsugiki: pass --merged"), "lm_head" in err) == (2, True, True)
    for typed, status in (("n\n", 1), ("\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert run("export", "tied", "--gguf", "x.gguf")[0] == status
        assert Path("x.gguf").is_file() == (status == 0)
    assert "output.weight" in {tensor.name for tensor in read_header(Path("x.gguf")).tensors}


def test_an_adapter_of_a_gguf_file_is_merged_into_that_file(run: Any):
    shutil.copy(gguf_of_base("embedded"), "base.gguf")
    adapter("base.gguf", "a")
    status, out, err = run("export", "a", "--merged", "--gguf", "x.gguf", "--dtype", "f16")
    assert (status, err) == (0, "")
    assert out.startswith("x.gguf: 24 of 76 tensors merged in f16, ")
    assert out.endswith("for Ollama: x.Modelfile\nnext: tsugiki chat --model x.gguf\n")
    status, _, err = run("export", "a", "--base-gguf", "none.gguf", "--gguf", "y.gguf")
    assert (status, "no GGUF file is known for none.gguf" in err, "--base-gguf" in err) == (2, True, True)
    status, _, err = run("export", "a", "--gguf", "y.gguf", "--dtype", "f16")
    assert (status, "--merged takes --dtype" in err, Path("y.gguf").exists()) == (2, True, False)


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("place", "by", "said"),
    [
        ("tsugiki.export.gguf_merge._write_header", full, "x.gguf: No space left on device"),
        ("gguf.GGUFWriter.write_tensors_to_file", full, "x.gguf: No space left on device"),
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000), "50.0 kB"),  # before anything is written
    ],
)
def test_a_full_disk_gives_one_line_and_no_file(
    place: str, by: object, said: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter("embedded", "a")
    monkeypatch.setattr(place, by)
    before = sorted(os.listdir("."))
    merged = [] if place.endswith("_to_file") else ["--merged"]
    status, _, err = run("export", "a", *merged, "--gguf", "x.gguf")
    assert (status, err.count("\n"), said in err) == (2, 1, True)
    assert sorted(os.listdir(".")) == before


class Terminal(io.StringIO):
    """Text that is typed in a terminal."""

    def isatty(self) -> bool:
        return True
