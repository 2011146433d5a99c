"""`tsugiki merge`: what it prints, and one line with status 2 for what cannot be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.folders import edit_weights
from tests.files import contents
from tests.tiny import save_grafted, save_tiny
from tsugiki import LoraConfig, graft, save_adapter
from tsugiki.base import load_model
from tsugiki.methods import PromptTuningConfig


@pytest.fixture
def adapters(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two LoRAs (one in the library), one of DoRA, and a prompt; returns the base."""
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    configs = {
        "one": LoraConfig(r=2),
        "library/two": LoraConfig(r=4),
        "dora": LoraConfig(use_dora=True),
        "prompt": PromptTuningConfig(num_virtual_tokens=3),
    }
    for seed, (name, config) in enumerate(configs.items()):
        save_grafted(tmp_path / name, load_model(base), config, seed)
    return base


def test_two_adapters_with_weights_and_their_figures(adapters: str, run):
    status, out, err = run(
        *("merge", "--model", adapters, "--adapter", "one", "--adapter", "two", "--weights", "0.5,2"),
        *("--out", "merged", "--data", "text.txt", "--characters", "500"),
    )
    assert (status, err) == (0, "")
    assert "merged: 8 of 28 tensors changed; rounding to their dtypes loses 0.00% of the change" in out
    assert "changes the logits by up to" in out
    assert [line for line in out.splitlines() if "merged" in line and "│" in line]
    figures = json.loads(Path("merged", "tsugiki.json").read_text())["figures"]
    assert set(figures["perplexity"]) == {"base", "adapted", "merged"}
    status, out, _ = run("merge", "--model", adapters, "--adapter", "one", "--out", "quick", "--no-verify")
    assert (status, out.count("\n"), "probe" in out) == (0, 2, False)


@pytest.mark.parametrize("weights", [(), ("--weights", "0.5,2")])
def test_weights_mean_the_same_as_in_combine(weights: tuple[str, ...], adapters: str, run):
    both = ("--adapter", "one", "--adapter", "two")
    assert run("merge", "--model", adapters, *both, *weights, "--out", "merged", "--no-verify")[0] == 0
    assert run("adapters", "combine", "one", "two", *weights, "--out", "both")[0] == 0
    assert run("merge", "--model", adapters, "--adapter", "both", "--out", "combined", "--no-verify")[0] == 0
    merged, combined = (load_file(Path(name, "model.safetensors")) for name in ("merged", "combined"))
    assert merged.keys() == combined.keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(combined[key], tensor, msg=key)
    base = load_file(Path(adapters, "model.safetensors"))
    assert any(not torch.allclose(tensor, base[key], atol=1e-3) for key, tensor in merged.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--adapter", "one", "--weights", "x"), "--weights is 'x'"),
        (("--adapter", "one", "--weights", "1,2"), "weights are 1, 2"),
        (("--adapter", "one", "--weights", "inf"), "weights are inf"),
        (("--adapter", "one", "--adapter", "dora"), "dora"),
        (("--adapter", "prompt"), "soft prompt"),
        (("--adapter", "one", "--adapter", "prompt"), "prompt "),
        (("--adapter", "nowhere"), "'nowhere'"),
        (("--adapter", "base"), "base"),
        (("--adapter", "nan"), "finite"),
        (("--adapter", "one", "--out", "base/inside"), "base/inside"),
        (("--adapter", "one", "--out", "one"), "exists"),
        (("--adapter", "one", "--out", "text.txt"), "text.txt"),
        (("--adapter", "one", "--out", "text.txt/x"), "text.txt/x"),
        (("--adapter", "one", "--data", "nowhere.txt"), "nowhere.txt"),
        (("--adapter", "one", "--data", "text.txt", "--no-verify"), "--no-verify"),
        (("--adapter", "one", "--model", "other"), "--allow-base-mismatch"),
        (("--adapter", "one", "--model", "llama", "--allow-base-mismatch"), "target_modules="),
        (("--adapter", "one", "--model", "cut"), "model.safetensors"),
        (("--adapter", "one", "--model", "one"), "adapter"),
        (("--adapter", "one", "--characters", "0"), "--characters"),
    ],
)
def test_what_cannot_be_merged_is_one_line(arguments: tuple[str, ...], said: str, adapters: str, run, tmp_path: Path):
    save_tiny(tmp_path / "other", seed=4)
    save_tiny(tmp_path / "llama", "llama")
    save_tiny(tmp_path / "cut")
    cut = tmp_path / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    model = load_model(adapters)
    graft(model, LoraConfig(r=2))
    save_adapter(model, tmp_path / "nan")
    edit_weights(tmp_path / "nan", lambda tensors: [tensor.div_(0) for tensor in tensors.values()])
    before = contents(tmp_path)
    defaults = {"--model": adapters, "--out": "merged"}
    given = [word for name, value in defaults.items() if name not in arguments for word in (name, value)]
    status, out, err = run("merge", *given, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert contents(tmp_path) == before
