"""Fingerprints of bases: what changes them, and what does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.errors import assert_refused
from tests.files import json_of
from tests.tiny import grafted, logits, save_grafted, save_tiny, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, load_adapter, merge, save_adapter, ungraft, unmerge
from tsugiki.adapters import read_base
from tsugiki.base import (
    BaseIdentity,
    identity,
    identity_of,
    load_model,
    named_fingerprint,
    named_identity,
    why_different,
)

KEY = "transformer.h.0.ln_1.weight"


CHANGES: dict[str, Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {
    "value": lambda tensor: {KEY: tensor + 1},
    "dtype": lambda tensor: {KEY: tensor.half()},
    "name": lambda tensor: {"renamed": tensor},
    "shape": lambda tensor: {KEY: tensor[None]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_tensor_changes_the_fingerprint(change: str, base: Path):
    expected = named_fingerprint(str(base))
    tensors = load_file(base / "model.safetensors")
    tensors |= CHANGES[change](tensors.pop(KEY))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert named_fingerprint(str(base)) != expected


def test_the_identity_of_a_loaded_model_is_that_of_its_files(base: Path):
    for dtype in ("fp32", "bf16", "int8"):
        model = load_model(str(base), dtype)  # type: ignore[arg-type]
        assert identity_of(model) == named_identity(str(base))
        assert identity_of(model).fingerprint == named_fingerprint(str(base)) is not None


def test_the_shards_are_those_of_the_index(base: Path, tmp_path: Path):
    expected, sharded = named_fingerprint(str(base)), tmp_path / "sharded"
    tiny_model(vocab_size=257).save_pretrained(sharded, max_shard_size="20KB")
    index = sharded / "model.safetensors.index.json"
    for path in sharded.glob("*.safetensors"):
        renamed = path.rename(path.with_stem(f"part-{path.stem}"))
        index.write_text(index.read_text().replace(path.name, renamed.name))
    shutil.copy(base / "model.safetensors", sharded / "model-of-another.safetensors")
    assert named_fingerprint(str(sharded)) == identity_of(load_model(str(sharded))).fingerprint == expected


def test_a_folder_that_is_written_over_has_another_identity_than_the_loaded_model(base: Path, tmp_path: Path):
    early, late = load_model(str(base)), load_model(str(base))
    was = identity_of(early)
    tiny_model(seed=1, vocab_size=257).save_pretrained(base)
    assert identity_of(early) == was
    assert named_identity(str(base)).fingerprint not in (None, was.fingerprint)
    with pytest.warns(UserWarning, match="changed after it was loaded"):
        assert identity_of(late).fingerprint is None
    save_adapter(grafted(late, LoraConfig(r=2)), tmp_path / "unknown")
    with pytest.warns(UserWarning, match="unknown was saved without the fingerprint of .*base"):
        load_adapter(load_model(str(base)), tmp_path / "unknown")
    grafted(early, LoraConfig(r=2))
    save_adapter(early, tmp_path / "adapter")
    assert_refused("their weights differ", load_adapter, load_model(str(base)), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta is 10000.0 and 5"),
        ("gpt2", {"layer_norm_epsilon": 0.5}, "layer_norm_epsilon is 1e-05 and 0.5"),
        ("gpt2", {"resid_pdrop": 0.5, "use_cache": False, "eos_token_id": 7, "dtype": "float16", "own": 1}, ""),
    ],
)
def test_settings_that_compute_are_a_part_of_the_identity(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
):
    base = Path(save_tiny(tmp_path / "base", kind))
    trained = load_model(str(base))
    grafted(trained, LoraConfig(r=2, target_modules="all-linear"))
    save_adapter(trained, tmp_path / "adapter")
    config = json_of(base / "config.json")
    (base / "config.json").write_text(json.dumps(config | change))
    changed = load_model(str(base))
    assert identity_of(changed).fingerprint == identity_of(trained).fingerprint
    assert identity_of(changed) == named_identity(str(base))
    if not message:
        load_adapter(changed, tmp_path / "adapter")
        return
    assert_refused(message, load_adapter, changed, tmp_path / "adapter")
    load_adapter(changed, tmp_path / "adapter", allow_base_mismatch=True)


def test_an_adapter_on_merged_weights_belongs_to_these_weights(base: Path, tmp_path: Path):
    save_grafted(tmp_path / "first", load_model(str(base)), LoraConfig(r=2))
    model = load_model(str(base))
    load_adapter(model, tmp_path / "first")
    ungraft(merge(model))
    grafted(model, LoraConfig(r=2), seed=7)
    expected = logits(model)
    save_adapter(model, tmp_path / "second")
    assert_refused("their weights differ", load_adapter, load_model(str(base)), tmp_path / "second")
    assert read_base(tmp_path / "second").name == str(base)
    ungraft(model)
    load_adapter(model, tmp_path / "second")
    assert torch.equal(logits(model), expected)
    ungraft(model).save_pretrained(tmp_path / "merged")
    shutil.copy(base / "tokenizer.json", tmp_path / "merged")
    saved = load_model(str(tmp_path / "merged"))
    assert identity_of(saved).fingerprint == identity_of(model).fingerprint
    load_adapter(saved, tmp_path / "second")
    assert torch.equal(logits(saved), expected)


def test_bases_differ_only_where_both_are_known():
    one, other = (BaseIdentity(fingerprint=f"sha256:{i}", config={"a": i, "b": 1}) for i in range(2))
    assert identity_of(torch.nn.Linear(2, 2)) == BaseIdentity()
    assert why_different(one, other) == "their weights differ"
    assert why_different(one, one) == ""
    assert why_different(one, BaseIdentity()) == why_different(one, named_identity("nobody/nothing")) == ""
    assert why_different(BaseIdentity(config={"a": 0}), other) == "their configs differ: a is 0 and 1"
    assert why_different(BaseIdentity(config={"b": 1, "new": 3}), other) == ""


def test_the_fingerprint_of_large_files_is_kept_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(save_tiny(tmp_path / "base", "llama"))
    expected = named_fingerprint(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_LARGE", 0)

    def computed_again() -> str | None:
        identity._digest_files.cache_clear()
        return named_fingerprint(str(folder))

    assert computed_again() == expected
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_digest_tensors", lambda shard: pytest.fail("read again"))
        assert computed_again() == expected
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path)
    assert computed_again() != expected


def test_an_infinite_setting_is_the_same_after_it_was_written_and_an_unmerged_model_the_base(tmp_path: Path):
    model = tiny_of("bamba")
    assert float("inf") in model.config.time_step_limit
    save_grafted(tmp_path, model, LoraConfig(r=2))
    was = identity_of(model)
    assert load_adapter(tiny_of("bamba"), tmp_path)
    ungraft(unmerge(merge(model)))
    assert identity_of(model) == was
