"""A merge is held against base and adapter before its folder appears; where it fails, nothing is there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.folders import edit_weights
from tests.errors import refused
from tests.files import contents, json_of
from tests.tiny import TEXT, save_grafted, save_tiny
from tsugiki import LoraConfig, disable_adapter, load_adapter
from tsugiki.base import load_model
from tsugiki.io import ProgressDisplay
from tsugiki.model import probe_logits
from tsugiki.training import Merge, MergeReport, merge_into_folder
from tsugiki.training.run import merge


def merged(out: Path, base: str, *adapters: Path, **more: Any) -> MergeReport:
    return merge_into_folder(Merge(base, adapters, **more), out, ProgressDisplay())


@pytest.fixture
def base(tmp_path: Path) -> str:
    base = save_tiny(tmp_path / "base")
    for seed, name in enumerate("ab"):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"])
        save_grafted(tmp_path / name, load_model(base), config, seed)
    (tmp_path / "text.txt").write_text(TEXT)
    return base


def test_the_figures_are_those_of_base_adapted_and_merged(base: str, tmp_path: Path):
    load_model(base, "bf16").save_pretrained(base)
    report = merged(tmp_path / "out", base, tmp_path / "a", allow_base_mismatch=True)
    model = load_model(base, "auto")
    load_adapter(model, tmp_path / "a", allow_base_mismatch=True)
    with disable_adapter(model):
        plain = probe_logits(model)
    adapted = probe_logits(model)
    final = load_model(str(tmp_path / "out"), "auto")
    assert final.dtype == torch.bfloat16
    done = probe_logits(final)
    assert report.probe.shift == float((adapted.float() - plain.float()).abs().max())
    assert report.probe.error == float((done.float() - adapted.float()).abs().max())
    assert 0 < report.probe.error < report.probe.shift / 4
    assert (report.changed, report.tensors) == (6, len(load_file(Path(base, "model.safetensors"))))
    said = json_of(tmp_path / "out" / "tsugiki.json")
    assert said["figures"] == report.to_json()
    assert said["base"]["name"] == base
    assert [one["name"] for one in said["provenance"]["sources"]] == ["a"]


def test_several_are_verified_as_their_sum(base: str, tmp_path: Path):
    report = merged(tmp_path / "out", base, tmp_path / "a", tmp_path / "b", weights=[0.5, 2.0])
    assert report.probe.error < 1e-5 < report.probe.shift
    sources = json_of(tmp_path / "out" / "tsugiki.json")["provenance"]["sources"]
    assert [one["weight"] for one in sources] == [0.5, 2.0]


def test_without_a_look_at_the_result_the_model_is_never_loaded(base: str, tmp_path: Path, monkeypatch: Any):
    def fail(*_: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(merge, "load_model", fail)
    report = merged(tmp_path / "out", base, tmp_path / "a", verify=False)
    assert report.probe is None
    with pytest.raises(AssertionError):
        merged(tmp_path / "other", base, tmp_path / "a")
    assert not (tmp_path / "other").exists()


def test_float16_is_looked_at_in_float32_by_a_processor(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load_model(base).half().save_pretrained(base)
    seen = []
    monkeypatch.setattr(merge, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(merge, "probe_logits", lambda model: seen.append(model.dtype) or probe_logits(model))
    merged(tmp_path / "out", base, tmp_path / "a", allow_base_mismatch=True)
    assert seen == [torch.float32] * 3
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("out", ["base/merged", "base", "a", "text.txt/merged", "base/../base/x"])
def test_a_folder_that_cannot_be_new_is_refused(out: str, base: str, tmp_path: Path):
    before = contents(tmp_path)
    with refused(r"base|exists|text\.txt"):
        merged(tmp_path / out, base, tmp_path / "a")
    assert contents(tmp_path) == before


def test_logits_that_are_not_finite_leave_nothing(base: str, tmp_path: Path):
    edit_weights(tmp_path / "a", lambda tensors: [tensor.mul_(1e14) for tensor in tensors.values()])
    before = contents(tmp_path)
    with refused("not finite"):
        merged(tmp_path / "out", base, tmp_path / "a")
    assert contents(tmp_path) == before
