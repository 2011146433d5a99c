"""Adapters' folders for tests that need no model."""

from pathlib import Path
from typing import Any

import torch

from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, write_lora_weights
from tsugiki.adapters.metadata import BaseReference
from tsugiki.lora.config import LoraConfig


def lora_of(seed: int = 0, r: int = 4, blocks: int = 2, **fields: Any) -> LoraWeights:
    """A LoRA adapter of random numbers for the tiny GPT-2's attention."""
    noise = torch.Generator().manual_seed(seed)
    layers = {
        f"transformer.h.{block}.attn.c_attn": LayerFactors(
            torch.randn(r, 32, generator=noise), torch.randn(96, r, generator=noise), 2.0
        )
        for block in range(blocks)
    }
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["c_attn"], fan_in_fan_out=True, **fields)
    return LoraWeights(config, layers, {}, BaseReference(name="tiny", fingerprint=None), "CAUSAL_LM")


def write(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """Such an adapter as a folder."""
    write_lora_weights(lora_of(seed, **fields), folder, None)
    return folder
