"""`tsugiki merge`: what it prints, and one line with status 2 for what cannot be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.files import contents
from tests.tiny import TEXT, save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.base import load_model
from tsugiki.methods import PromptTuningConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two LoRAs (one in the library), one of DoRA, a prompt, and bases."""
    folder = tmp_path_factory.mktemp("made")
    base = save_tiny(folder / "base")
    configs = {
        "one": LoraConfig(r=2),
        "library/two": LoraConfig(r=4),
        "dora": LoraConfig(use_dora=True),
        "prompt": PromptTuningConfig(num_virtual_tokens=3),
    }
    for seed, (name, config) in enumerate(configs.items()):
        save_grafted(folder / name, load_model(base), config, seed)
    save_tiny(folder / "other", seed=4)
    save_tiny(folder / "cut")
    cut = folder / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    return folder


@pytest.fixture
def adapters(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The content of `made` and a text, in the working directory; returns the base."""
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "base")


def test_two_adapters_with_weights_and_their_figures(adapters: str, run):
    status, out, err = run(
        *("merge", "--model", adapters, "--adapter", "one", "--adapter", "two", "--weights", "0.5,2"),
        *("--out", "merged"),
    )
    assert (status, err) == (0, "")
    assert "merged: 8 of 28 tensors changed" in out
    assert "changes the logits by up to" in out
    figures = json.loads(Path("merged", "tsugiki.json").read_text())["figures"]
    assert set(figures) >= {"largest_logit_change", "largest_logit_error"}
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
        (("--adapter", "one", "--adapter", "dora"), "dora"),
        (("--adapter", "prompt"), "soft prompt"),
        (("--adapter", "nowhere"), "'nowhere'"),
        (("--adapter", "one", "--out", "one"), "exists"),
        (("--adapter", "one", "--out", "text.txt/x"), "text.txt/x"),
        (("--adapter", "one", "--model", "other"), "--allow-base-mismatch"),
        (("--adapter", "one", "--model", "cut"), "model.safetensors"),
        (("--adapter", "one", "--model", "one"), "adapter"),
    ],
)
def test_what_cannot_be_merged_is_one_line(arguments: tuple[str, ...], said: str, adapters: str, run, tmp_path: Path):
    before = contents(tmp_path)
    defaults = {"--model": adapters, "--out": "merged"}
    given = [word for name, value in defaults.items() if name not in arguments for word in (name, value)]
    status, out, err = run("merge", *given, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert contents(tmp_path) == before
