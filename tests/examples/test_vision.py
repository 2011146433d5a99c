"""The vision example, with a few steps and in full."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki import LoraConfig

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "vision" / "train_vision.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_vision", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "targets", "trained"),
    # rank 2 · (in · kernel + out): the stem and the two convolutions of a block; the patches, queries, feed-forward
    [
        ("small_resnet", r"0|2\.conv\d", 2 * (9 + 16 + 2 * (16 * 9 + 16))),
        ("small_vit", ["projection", "q_proj", "fc1"], 2 * (16 + 64 + 2 * (64 + 64) + 2 * (64 + 128))),
    ],
)
def test_a_few_steps_of_it(
    script: Any, name: str, targets: Any, trained: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=targets)
    script.adapt("a model", getattr(script, name), config, 4, tmp_path)
    said = capsys.readouterr().out
    assert f"  adapter: {trained:,} trainable parameters" in said
    assert "the logits agree" in said
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.slow
def test_the_adapters_reach_the_accuracy_of_the_docstring(script: Any, capsys: pytest.CaptureFixture[str]):
    script.main()
    said = capsys.readouterr().out
    found = [int(line.split()[3].rstrip("%")) for line in said.splitlines() if "with the adapter: " in line]
    assert len(found) == 2
    assert min(found) >= 85
