"""A flipped bit in a checkpoint, an adapter or a cached model is found before anything of it is used."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import interrupt, run_config
from tests.tiny import save_grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError
from tsugiki.adapters import read_adapter_config, read_base, read_weights
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHECKPOINTS, METADATA_FILE
from tsugiki.training import newest_checkpoint, train


def checkpoint_of(folder: Path, **method: Any) -> Path:
    """The only checkpoint of an interrupted run."""
    interrupt(train, run_config(folder, max_steps=2, save_steps=1, prompts=[], **method), 1)
    return folder / "run" / CHECKPOINTS / "checkpoint-1"


def adapter(folder: Path) -> Path:
    save_grafted(folder / "adapter", tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only"))
    return folder / "adapter"


def read_checkpoint(folder: Path) -> Any:
    found = newest_checkpoint(folder.parent)
    assert found is not None
    return found.step


def read_adapter(folder: Path) -> Any:
    """What the result depends on: the settings, the weights of the base, and the tensors."""
    tensors = {key: tensor.clone() for key, tensor in read_weights(folder).items()}
    return read_adapter_config(folder), read_base(folder).fingerprint, tensors


WORKS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], float]] = {
    "checkpoint": (partial(checkpoint_of, lora={"r": 1, "target_modules": ["c_attn"]}), read_checkpoint, 0),
    "full checkpoint": (partial(checkpoint_of, method="full"), read_checkpoint, 0),
    "adapter": (adapter, read_adapter, 0.2),  # the spelling of some numbers in its JSON may change
}
"""How files are made and read, and the largest share of flipped bits that may change nothing."""


def _slow(name: str) -> Any:
    return pytest.param(name, None, marks=pytest.mark.slow, id=f"{name}-all")


@pytest.mark.parametrize(("name", "bits"), [*((name, 25) for name in WORKS), _slow("checkpoint"), _slow("adapter")])
def test_a_flipped_bit_is_found(name: str, bits: int | None, tmp_path: Path):
    """So many bits of each file are flipped, one at a time; what is read must be refused, or be the same."""
    make, read, may_be_harmless = WORKS[name]
    folder, draw = make(tmp_path), random.Random(0)
    intact, found, harmless = read(folder), Counter[str](), 0
    parts = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE)
    files = [path for path in sorted(folder.iterdir()) if name != "adapter" or path.name in parts]
    for path in files:
        content = path.read_bytes()
        for bit in draw.sample(range(8 * len(content)), bits or 8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            try:
                now = read(folder)
            except TsugikiError:
                found[path.name] += 1
            else:
                assert _equal(now, intact), f"bit {bit} of {path.name}"
                harmless += 1
        path.write_bytes(content)
    assert read(folder) is not None
    assert set(found) == {path.name for path in files}
    assert harmless <= may_be_harmless * (found.total() + harmless)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
