"""`tsugiki export` and `tsugiki adapters import`, through the command line: files, and one line for each bad input."""

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.export.bases import write_base
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


def test_export_and_import(run: Any, base: str):
    write_base(load_model(base), Path("base.gguf"))
    status, out, _ = run("export", "a", "--gguf", "a.gguf", "--base", "base.gguf")
    assert status == 0
    assert "a.gguf: 14 layers, rank 2, alpha 4" in out
    assert "llama-cli -m base.gguf --lora a.gguf" in out
    lines = Path("a.Modelfile").read_text().splitlines()
    assert f"FROM {Path('base.gguf').absolute()}" in lines
    assert "ADAPTER ./a.gguf" in lines
    assert "PARAMETER num_ctx 64" in lines
    assert run("adapters", "import", "a.gguf", "--model", base, "--out", "./b")[0] == 0
    a, b = read_lora_weights(Path("a")), read_lora_weights(Path("b"))
    assert (a.base.name, a.base.fingerprint) == (b.base.name, b.base.fingerprint)
    assert a.base.config
    assert not b.base.config, "a GGUF file does not hold it"
    assert {path: layer.B.tolist() for path, layer in a.layers.items()} == {
        path: layer.B.tolist() for path, layer in b.layers.items()
    }
    assert "FROM" not in [line.split(" ")[0] for line in _exported(run, "c", "a")]


def _exported(run: Any, name: str, adapter: str) -> list[str]:
    assert run("export", adapter, "--gguf", f"{name}.gguf")[0] == 0
    return Path(f"{name}.Modelfile").read_text().splitlines()


def test_rejected_exports(run: Any, base: str, tmp_path: Path):
    gpt2 = save_tiny(tmp_path / "gpt2", "gpt2")
    opt = save_tiny(tmp_path / "opt", "opt")
    adapter(base, "dora", use_dora=True)
    adapter(base, "head", modules_to_save=["lm_head"])
    adapter(gpt2, "positions", target_modules=["wpe", "wte"])
    adapter(opt, "of-opt")
    write_base(load_model(gpt2), Path("gpt2.gguf"))
    assert "DoRA" in refused(run, "export", "dora", "--gguf", "x.gguf")
    assert "(lm_head.weight)" in refused(run, "export", "head", "--gguf", "x.gguf")
    assert "position_embd" in refused(run, "export", "positions", "--gguf", "x.gguf")
    assert "opt" in refused(run, "export", "of-opt", "--gguf", "x.gguf")
    assert "--allow-base-mismatch" in refused(run, "export", "a", "--gguf", "x.gguf", "--model", gpt2)
    assert "down_proj" in refused(run, "export", "a", "--gguf", "x.gguf", "--model", gpt2, "--allow-base-mismatch")
    assert "'gpt2'" in refused(run, "export", "a", "--gguf", "x.gguf", "--base", "gpt2.gguf")
    assert "GGUF" in refused(run, "export", "a", "--gguf", "x.gguf", "--base", f"{base}/config.json")
    assert "no" in refused(run, "export", "a", "--gguf", "no/x.gguf")
    assert ".gguf" in refused(run, "export", "a", "--gguf", "x.bin")
    assert "nothing" in refused(run, "export", "nothing", "--gguf", "x.gguf")
    assert run("export", "a", "--gguf", "x.gguf")[0] == 0
    assert "x.gguf" in refused(run, "export", "a", "--gguf", "x.gguf")
    Path("x.gguf").unlink()
    assert "x.Modelfile" in refused(run, "export", "a", "--gguf", "x.gguf")
    assert "adapter" in refused(run, "export", "a", "--gguf", "y.gguf", "--base", _kept(run))


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


def test_rejected_imports(run: Any, base: str, tmp_path: Path):
    kept = _kept(run)
    content = Path(kept).read_bytes()
    for size in (3, 200, 2000, len(content) - 9):
        Path("cut.gguf").write_bytes(content[:size])
        said = refused(run, "adapters", "import", "cut.gguf", "--model", base, "--out", "./x")
        assert "cut.gguf" in said
    gpt2, wide = save_tiny(tmp_path / "gpt2", "gpt2"), save_tiny(tmp_path / "wide", "llama", intermediate_size=64)
    other = save_tiny(tmp_path / "other", "llama", seed=1)
    write_base(load_model(base), Path("base.gguf"))

    def said(file: str, model: str, out: str = "./x", *more: str) -> str:
        return refused(run, "adapters", "import", file, "--model", model, "--out", out, *more)

    assert "'llama'" in said(kept, gpt2)
    assert "ffn_gate has A [2, 32] and B [48, 2]" in said(kept, wide)
    assert "--allow-base-mismatch" in said(kept, other)
    assert "base.gguf" in said("base.gguf", base)
    assert "none.gguf" in said("none.gguf", base)
    assert "exists" in said(kept, base, "./a")
    shutil.copy(kept, "nan.gguf")
    with Path("nan.gguf").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\x7f")
    assert "is not finite" in said("nan.gguf", base)
