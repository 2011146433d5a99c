"""`tsugiki adapters combine | scale | truncate | extract`: new adapters from others, through the real command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import logits, relative_error
from tsugiki import LoraConfig, graft, load_adapter, merge, save_adapter, ungraft
from tsugiki.base.loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def pair(base: str, library: Path) -> tuple[str, str]:
    """Adapters "a" and "b" in the library, of ranks 4 and 6."""
    for name, rank in (("a", 4), ("b", 6)):
        model = load_model(base)
        torch.manual_seed(rank)
        graft(model, LoraConfig(r=rank, target_modules=["c_attn", "c_proj"], init_lora_weights=False))
        save_adapter(model, library / name)
    return "a", "b"


def adapted(base: str, folder: Path) -> torch.Tensor:
    model = load_model(base)
    load_adapter(model, folder)
    return logits(model)


def test_a_combination_is_in_the_library(run: Run, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "combine", *pair, "--out", "both", "--weights", "0.7,-0.3")
    assert status == 0
    assert f"→ {library / 'both'} (" in out
    assert "cat: ‖ΔW‖ = " in out
    made = json.loads((library / "both" / "tsugiki.json").read_text())["provenance"]
    assert (made["operation"], made["settings"]["combination_type"]) == ("combine", "cat")
    assert [(one["name"], one["weight"]) for one in made["sources"]] == [("a", 0.7), ("b", -0.3)]
    assert all(one["weights"].startswith("sha256:") for one in made["sources"])
    assert json.loads((library / "both" / "adapter_config.json").read_text())["r"] == 10


def test_a_type_that_is_no_sum_says_how_far_it_is_off(run: Run, pair: tuple[str, str], tmp_path: Path):
    arguments = ("adapters", "combine", *pair, "--type", "ties_svd", "--density", "0.3", "--rank", "5")
    status, out, _ = run(*arguments, "--out", str(tmp_path / "new" / "mix"))
    assert status == 0
    assert "ties_svd: ‖ΔW‖ = " in out
    assert "the exact sum has" in out
    assert json.loads((tmp_path / "new" / "mix" / "adapter_config.json").read_text())["r"] == 5


def test_twice_negated_is_the_adapter(run: Run, base: str, pair: tuple[str, str], library: Path):
    assert run("adapters", "scale", "a", "--by", "-1", "--out", "not-a")[0] == 0
    assert run("adapters", "scale", "not-a", "--by", "-1", "--out", "again")[0] == 0
    assert torch.equal(adapted(base, library / "again"), adapted(base, library / "a"))
    assert relative_error(adapted(base, library / "not-a"), adapted(base, library / "a")) > 1e-2


def test_truncated(run: Run, base: str, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "truncate", "b", "--rank", "2", "--out", "b2")
    assert status == 0
    assert "overall: " in out
    assert json.loads((library / "b2" / "adapter_config.json").read_text())["r"] == 2
    assert relative_error(adapted(base, library / "b2"), adapted(base, library / "b")) > 1e-3
    assert run("adapters", "truncate", "b", "--energy", "0.5", "--out", "half")[0] == 0
    made = json.loads((library / "half" / "tsugiki.json").read_text())["provenance"]
    assert (made["operation"], made["settings"]) == ("truncate", {"energy": 0.5})


def test_extracted(run: Run, base: str, pair: tuple[str, str], library: Path, tmp_path: Path):
    model = load_model(base)
    load_adapter(model, library / "a")
    merged = ungraft(merge(model))
    merged.save_pretrained(tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    tensors["transformer.ln_f.weight"] += 0.1
    save_file(tensors, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    arguments = ("adapters", "extract", "--model", str(tmp_path / "merged"), "--base", base, "--rank", "4")
    status, out, _ = run(*arguments, "--out", "found")
    assert status == 0
    assert "did not change: transformer.h.0.mlp.c_fc, transformer.h.1.mlp.c_fc" in out
    assert "not in the adapter: transformer.ln_f.weight (" in out
    assert relative_error(adapted(base, library / "found"), logits(merged)) < 1e-5


def spoiled(folder: Path, out: Path, how: str) -> str:
    shutil.copytree(folder, out)
    path = out / "adapter_model.safetensors"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    if how == "nan":
        tensors = load_file(path)
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, path)
    if how in ("newer", "dora"):
        config = json.loads((out / "adapter_config.json").read_text())
        config |= {"newer": {"use_bdlora": True}, "dora": {"use_dora": True}}[how]
        (out / "adapter_config.json").write_text(json.dumps(config))
    if how == "ia3":
        (out / "adapter_config.json").write_text('{"peft_type": "IA3", "target_modules": ["c_attn"]}')
    if how == "other":
        config = json.loads((out / "tsugiki.json").read_text())
        config["base"] = {"name": "another", "fingerprint": "sha256:0"}
        (out / "tsugiki.json").write_text(json.dumps(config))
    return str(out)


BAD = [
    (("combine", "a", "none", "--out", "x"), "no adapter 'none'"),
    (("combine", "a", "b", "--out", "x", "--weights", "1"), "each of the 2 adapters"),
    (("combine", "a", "b", "--out", "x", "--weights", "1,two"), "--weights is '1,two'"),
    (("combine", "a", "b", "--out", "x", "--weights", "1,inf"), "weights are 1, inf"),
    (("combine", "a", "b", "--out", "x", "--weights", "1,1e39"), "is not finite"),
    (("combine", "a", "b", "--out", "x", "--type", "linear"), "has rank 4 in a and 6 in b; use cat (exact) or svd"),
    (("combine", "a", "b", "--out", "x", "--type", "mean"), "'mean'"),
    (("combine", "a", "b", "--out", "x", "--type", "ties"), "requires a density"),
    (("combine", "a", "b", "--out", "x", "--type", "svd", "--rank", "0"), "rank is 0"),
    (("combine", "a", "b", "--out", "a"), "a exists already"),
    (("combine", "a", "b", "--out", ".."), "cannot be called '..'"),
    (("combine", "a", "b", "--out", "x\x07"), "cannot stand in a name"),
    (("combine", "a", "b", "--out", "x" * 300), "longer than 100 characters"),
    (("combine", "a", "b", "--out", "base/"), "base exists already"),
    (("combine", "a", "b", "--out", "text.txt/x"), "cannot write text.txt/x"),
    (("combine", "a", "b", "--out", ""), "cannot be called ''"),
    (("combine", "a", "base", "--out", "x"), "no adapter in base"),
    (("combine", "a", "CUT", "--out", "x"), "adapter_model.safetensors is broken"),
    (("combine", "a", "NAN", "--out", "x"), "is not finite"),
    (("combine", "a", "NEWER", "--out", "x"), "use_bdlora"),
    (("combine", "a", "IA3", "--out", "x"), "ia3 is not a LoRA adapter"),
    (("combine", "a", "OTHER", "--out", "x"), "a and other were trained on different bases"),
    (("scale", "a", "--by", "0", "--out", "x"), "cannot be scaled by 0"),
    (("scale", "a", "--by", "nan", "--out", "x"), "cannot be scaled by nan"),
    (("scale", "a", "--by", "1e39", "--out", "x"), "float32"),
    (("scale", "DORA", "--by", "2", "--out", "x"), "use_dora is true"),
    (("truncate", "a", "--rank", "0", "--out", "x"), "rank is 0"),
    (("truncate", "a", "--rank", "4", "--out", "x"), "highest is 4"),
    (("truncate", "a", "--out", "x"), "--rank or --energy"),
    (("truncate", "a", "--rank", "2", "--energy", "0.9", "--out", "x"), "--rank or --energy"),
    (("truncate", "a", "--energy", "1.5", "--out", "x"), "energy is 1.5"),
    (("truncate", "a", "--rank", "two", "--out", "x"), "valid integer"),
    (("extract", "--model", "base", "--base", "base", "--out", "x"), "differs from base"),
    (("extract", "--model", "nothing/here", "--base", "base", "--out", "x"), "nothing/here"),
    (("extract", "--model", "library/a", "--base", "base", "--out", "x"), "library/a is not a model"),
    (("extract", "--model", "base", "--base", "base", "--out", "x", "--target-modules", "q"), "matches no layer"),
    (("extract", "--model", "base", "--base", "base", "--out", "x", "--rank", "-3"), "r is -3"),
    (("extract", "--model", "base", "--base", "base", "--out", "a"), "a exists already"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line_and_nothing_is_lost(
    arguments: tuple[str, ...], said: str, run: Run, pair: tuple[str, str], library: Path, tmp_path: Path
):
    arguments = tuple(
        spoiled(library / "a", tmp_path / word.lower(), word.lower()) if word.isupper() and len(word) > 1 else word
        for word in arguments
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts}
    status, out, err = run("adapters", *arguments)
    assert status == 2, err
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert out == ""
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert after == before


def test_other_bases_are_combined_when_asked(run: Run, pair: tuple[str, str], library: Path, tmp_path: Path):
    other = spoiled(library / "a", tmp_path / "other", "other")
    assert run("adapters", "combine", "b", other, "--out", "x", "--allow-base-mismatch")[0] == 0
    named = json.loads((library / "x" / "tsugiki.json").read_text())["base"]
    assert named == json.loads((library / "b" / "tsugiki.json").read_text())["base"]
