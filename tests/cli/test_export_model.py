"""`tsugiki export` of whole models, and a full disk for those and for adapters."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.base import load_model


def test_a_model_folder(run: Any, base: str, tmp_path: Path) -> None:
    status, out, err = run("export", "--model", base, "--gguf", "m.gguf", "--dtype", "f16")
    assert (status, err) == (0, "")
    assert out.startswith("m.gguf: 28 tensors of a gpt2 in f16, ")
    assert out.endswith(" 0 differences\nnext: tsugiki chat --model m.gguf\n")
    assert {"m.gguf", "m.Modelfile"} <= {path.name for path in tmp_path.iterdir()}


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("place", "by", "said"),
    [
        ("gguf.GGUFWriter.write_tensor_data", full, "m.gguf: No space left on device"),
        ("gguf.GGUFWriter.write_tensors_to_file", full, "m.gguf: No space left on device"),
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000), "50.0 kB"),  # before anything is written
    ],
)
def test_a_full_disk_gives_one_line_and_no_file(
    place: str, by: object, said: str, run: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_grafted("a", load_model(base), LoraConfig(r=2))
    exported = ("a",) if place.endswith("_to_file") else ("--model", base)
    monkeypatch.setattr(place, by)
    before = sorted(os.listdir("."))
    status, _, err = run("export", *exported, "--gguf", "m.gguf")
    assert (status, err.count("\n"), said in err) == (2, 1, True)
    assert sorted(os.listdir(".")) == before


def test_a_tokenizer_mismatch_requires_the_flag(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tests.export.tokenizers_of_kinds import unigram

    folder = save_tiny(tmp_path / "model", "gpt2", vocab_size=300)
    unigram().save_pretrained(folder)
    status, out, err = run("export", "--model", folder, "--gguf", "m.gguf")
    assert (status, out) == (2, "")
    assert "' A space before, and two after." in err
    assert not Path("m.gguf").exists()
    status, out, err = run("export", "--model", folder, "--gguf", "m.gguf", "--allow-tokenizer-mismatch")
    assert status == 0
    assert "' A space before, and two after.  ' is 19 tokens" in out
    assert Path("m.gguf").exists()
