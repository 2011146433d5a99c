"""An adapter of ours and the same one in PEFT: trained, stored and merged alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.tiny import ids, relative_error, train_steps
from tsugiki import merge, save_adapter, trainable_parameters, ungraft
from tsugiki.io import ADAPTER_FILE


def peft_logits(model: Any) -> torch.Tensor:
    """The logits of a text in PEFT's model, without those of virtual tokens before it."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids()).logits[:, -ids().shape[1] :]
    return logits


def gradients_of_peft(theirs: Any) -> dict[str, Any]:
    """The gradients by the names that the parameters have without PEFT's wrapper."""
    return {
        name.replace("base_model.model.", "").replace(".default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }


def assert_trained_alike(
    ours: Any,
    theirs: Any,
    folder: Path,
    peft_name: Callable[[str], str],
    steps: int = 2,
    lr: float = 1e-2,
    gradient: float = 2e-5,
    stored: float = 1e-4,
    **saving: Any,
) -> None:
    """Train both with AdamW; their last gradients and the files saved then are equal within these relative errors.

    `peft_name` gives PEFT's name of a parameter of ours, as `gradients_of_peft` has it; `saving` is for PEFT.
    """
    for model in (theirs, ours):
        train_steps(model, steps, lr)
    expected = gradients_of_peft(theirs)
    found = {peft_name(name): p.grad for name, p in trainable_parameters(ours).items()}
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert relative_error(one, expected[name]) < gradient, name
    theirs.save_pretrained(folder / "theirs", **saving)
    save_adapter(ours, folder / "ours")
    assert_files_equal(folder, stored)


def assert_files_equal(folder: Path, tolerance: float) -> None:
    """The files in `ours` and `theirs` hold the same tensors; PEFT adds the weights of embeddings."""
    mine, other = (load_file(folder / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    assert mine.keys() == {key for key in other if "base_layer.weight" not in key}
    for key, tensor in mine.items():
        assert tensor.shape == other[key].shape
        assert relative_error(tensor, other[key]) < tolerance, key


def assert_merged_alike(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Merge both; every weight is equal within this relative error."""
    merged = dict(ungraft(merge(ours)).named_parameters())
    expected = dict(theirs.merge_and_unload().named_parameters())
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        assert relative_error(weight, expected[name]) <= tolerance, name
