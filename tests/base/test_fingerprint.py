"""Fingerprints of bases: what changes them, and what does not."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, tiny_model
from tsugiki.base.fingerprint import base_fingerprint, folder_fingerprint, is_different_base, named_fingerprint
from tsugiki.base.loading import load_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(save_tiny(tmp_path / "base"))


def test_sharding_and_other_files_do_not_change_the_fingerprint(base: Path, tmp_path: Path):
    expected = folder_fingerprint(base)
    assert expected is not None
    assert expected.startswith("sha256:")
    tiny_model(vocab_size=257).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert folder_fingerprint(tmp_path / "sharded") == expected
    (base / "tokenizer.json").unlink()
    assert folder_fingerprint(base) == expected


@pytest.mark.parametrize("change", ["value", "dtype", "name", "shape"])
def test_a_change_of_one_tensor_changes_the_fingerprint(change: str, base: Path):
    expected = folder_fingerprint(base)
    tensors = load_file(base / "model.safetensors")
    key = "transformer.h.0.ln_1.weight"
    if change == "value":
        tensors[key][0] += 1
    elif change == "dtype":
        tensors[key] = tensors[key].half()
    elif change == "name":
        tensors["renamed"] = tensors.pop(key)
    else:
        tensors[key] = tensors[key][None]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert folder_fingerprint(base) != expected


def test_the_fingerprint_of_a_loaded_model_is_that_of_its_files(base: Path):
    for dtype in ("fp32", "bf16", "int8"):
        model = load_model(str(base), dtype)  # type: ignore[arg-type]
        assert base_fingerprint(model) == named_fingerprint(str(base)) == folder_fingerprint(base)


def test_bases_that_are_not_on_this_machine_have_no_fingerprint(tmp_path: Path):
    assert folder_fingerprint(tmp_path) is None
    assert named_fingerprint("nobody/nothing") is None
    assert base_fingerprint(torch.nn.Linear(2, 2)) is None


def test_a_base_differs_only_if_both_fingerprints_are_known(base: Path, tmp_path: Path):
    fingerprint = folder_fingerprint(base)
    shutil.copytree(base, tmp_path / "copy")
    other = save_tiny(tmp_path / "other", seed=1)
    assert not is_different_base(fingerprint, str(tmp_path / "copy"))
    assert is_different_base(fingerprint, other)
    assert not is_different_base(None, other)
    assert not is_different_base(fingerprint, "nobody/nothing")
