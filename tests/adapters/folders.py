"""Adapters' folders for tests that need no model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.files import edit_json, json_of
from tests.tiny import seeded
from tsugiki.adapters import (
    BaseReference,
    KnownBase,
    LayerFactors,
    LoraWeights,
    find_misfits,
    read_adapter_files,
    write_lora_weights,
)
from tsugiki.lora import LoraConfig


def lora_of(seed: int = 0, r: int = 4, blocks: int = 2, **fields: Any) -> LoraWeights:
    """A LoRA adapter of random numbers for the tiny GPT-2's attention."""
    noise = seeded(seed)
    layers = {
        f"transformer.h.{block}.attn.c_attn": LayerFactors(
            torch.randn(r, 32, generator=noise), torch.randn(96, r, generator=noise), 2.0
        )
        for block in range(blocks)
    }
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["c_attn"], fan_in_fan_out=True, **fields)
    return LoraWeights(config, layers, {}, BaseReference(name="tiny", fingerprint=None), "CAUSAL_LM")


def forget_digests(folder: Path) -> None:
    """Make tsugiki.json one of an earlier version, after a test has changed another file in the folder."""
    path = folder / "tsugiki.json"
    if path.is_file():
        fields = json_of(path)
        fields.pop("digests", None)
        path.write_text(json.dumps(fields))


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of adapter_config.json."""
    path = folder / "adapter_config.json"
    edit_json(path, **fields)
    forget_digests(folder)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of an adapter's file."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    forget_digests(folder)


def write(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """Such an adapter as a folder."""
    write_lora_weights(lora_of(seed, **fields), folder, None)
    return folder


def verify(folder: Path, base: KnownBase | None = None) -> list[str]:
    """All problems of an adapter's files or, if they have none and a base is given, the reasons why it does not fit."""
    files = read_adapter_files(folder)
    return list(files.problems) or (find_misfits(files, base) if base else [])
