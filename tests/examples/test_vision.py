"""The vision example, with a few steps and in full."""

from pathlib import Path
from typing import Any

import pytest
import torch
import train_vision

from tsugiki import LoraConfig


@pytest.mark.parametrize(
    ("name", "targets", "trained"),
    # rank 2 · (in · kernel + out): the stem and the two convolutions of a block; the patches, queries, feed-forward
    [
        ("small_resnet", r"0|2\.conv\d", 2 * (9 + 16 + 2 * (16 * 9 + 16))),
        ("small_vit", ["projection", "q_proj", "fc1"], 2 * (16 + 64 + 2 * (64 + 64) + 2 * (64 + 128))),
    ],
)
def test_a_few_steps_of_it(name: str, targets: Any, trained: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=targets)
    train_vision.adapt("a model", getattr(train_vision, name), config, 4, tmp_path)
    said = capsys.readouterr().out
    assert f"  adapter: {trained:,} trainable parameters" in said
    assert "the logits agree" in said
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.slow
def test_the_adapters_reach_the_accuracy_of_the_docstring(capsys: pytest.CaptureFixture[str]):
    train_vision.main()
    said = capsys.readouterr().out
    found = [int(line.split()[3].rstrip("%")) for line in said.splitlines() if "with the adapter: " in line]
    assert len(found) == 2
    assert min(found) >= 85
