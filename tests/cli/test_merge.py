"""`tsugiki merge`: what it prints, and what weights mean."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.files import json_of
from tests.tiny import save_grafted
from tsugiki import LoraConfig
from tsugiki.base import load_model


@pytest.fixture
def adapters(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A LoRA in the working directory and one in the library; returns the base."""
    monkeypatch.setenv("TSUGIKI_ADAPTERS", "library")
    for rank, folder in ((2, "one"), (4, "library/two")):
        save_grafted(tmp_path / folder, load_model(base), LoraConfig(r=rank), rank)
    return base


def test_two_adapters_with_weights_and_their_figures(adapters: str, run):
    merge = ("merge", "--model", adapters, "--adapter", "one")
    status, out, err = run(*merge, "--adapter", "two", "--weights", "0.5,2", "--out", "merged")
    assert (status, err) == (0, "")
    assert "merged: 8 of 28 tensors changed" in out
    assert "changes the logits by up to" in out
    figures = json_of("merged/tsugiki.json")["figures"]
    assert set(figures) >= {"largest_logit_change", "largest_logit_error"}
    status, out, _ = run(*merge, "--out", "quick", "--no-verify")
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
