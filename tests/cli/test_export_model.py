"""`tsugiki export` of whole models: what it writes and says, and what it does with bad input."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import save_tiny, tiny_model


def _config(base: str, **fields: Any) -> None:
    path = Path(base) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_model_folder(run: Any, base: str, tmp_path: Path) -> None:
    status, out, err = run("export", "--model", base, "--gguf", "m.gguf", "--dtype", "f16")
    assert (status, err) == (0, "")
    assert out.startswith("m.gguf: 28 tensors of a gpt2 in f16, ")
    assert out.endswith(" 0 differences\nnext: tsugiki chat --model m.gguf\n")
    assert {"m.gguf", "m.Modelfile"} <= {path.name for path in tmp_path.iterdir()}


def _break(what: str, base: str) -> None:
    """Make a good model folder a bad one."""
    weights = Path(base) / "model.safetensors"
    if what == "architecture":
        tiny_model("opt").save_pretrained(base)
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif what == "adapter":
        (Path(base) / "config.json").rename(Path(base) / "adapter_config.json")
    elif what == "no tokenizer":
        (Path(base) / "tokenizer.json").unlink()
    elif what == "vocabulary":
        _config(base, vocab_size=200)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("architecture", "'opt'"),
        ("truncated", "model.safetensors"),
        ("adapter", "adapter"),
        ("no tokenizer", "cannot be loaded"),
        ("vocabulary", "wte.weight is [257, 32]"),
    ],
)
def test_a_bad_model_gives_one_line_and_no_file(what: str, said: str, run: Any, base: str, tmp_path: Path) -> None:
    _break(what, base)
    before = sorted(os.listdir(tmp_path))
    status, out, err = run("export", "--model", base, "--gguf", "m.gguf")
    assert status == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("gguf", "said"),
    [
        ("there.gguf", "there.gguf"),
        ("half.gguf", "half.Modelfile"),
        ("m.bin", ".gguf"),
        ("text.txt/m.gguf", "text.txt"),
    ],
)
def test_a_bad_path_gives_one_line_and_leaves_existing_files(gguf: str, said: str, run: Any, base: str) -> None:
    Path("there.gguf").write_text("mine")
    Path("half.Modelfile").write_text("mine")
    before = sorted(os.listdir("."))
    status, _, err = run("export", "--model", base, "--gguf", gguf)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(".")) == before
    assert Path("there.gguf").read_text() == "mine"


def test_a_full_disk_gives_one_line_and_no_file(run: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    before = sorted(os.listdir("."))
    status, _, err = run("export", "--model", base, "--gguf", "m.gguf")
    assert (status, err.count("\n")) == (2, 1)
    assert "m.gguf: No space left on device" in err
    assert sorted(os.listdir(".")) == before


def test_disk_space_is_checked_before_writing(run: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=50_000))
    before = sorted(os.listdir("."))
    status, _, err = run("export", "--model", base, "--gguf", "m.gguf")
    assert (status, err.count("\n")) == (2, 1)
    assert "50.0 kB" in err
    assert "143.0 kB" in err
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
