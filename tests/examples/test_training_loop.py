"""The plain loop of examples/training_loop.py gives the losses of `tsugiki train`."""

from pathlib import Path

import pytest
import training_loop
from safetensors.torch import load_file

from tests.runs import short_texts
from tsugiki.training import RunConfig, train


def test_the_loop_gives_the_losses_and_the_adapter_of_tsugiki_train(tmp_path: Path):
    same = {"data": short_texts(tmp_path), "held_out": 0.25, "batch_size": 6, "block_size": 48}
    loop = training_loop.train(training_loop.Settings(out=str(tmp_path / "loop"), micro_batch_size=3, **same))
    settings = {
        "model": "embedded",
        "out": str(tmp_path / "run"),
        "base_dtype": "fp32",
        "validation": "none",
        "epochs": 2,
        "learning_rate": 2e-3,
        "lora": {"r": 8, "lora_alpha": 32, "lora_dropout": 0, "target_modules": "all-linear"},
    }
    record = train(RunConfig.model_validate(settings | same))
    run = [point.loss for point in record.loss_curve]
    assert len(loop.step_losses) == len(run) > 3
    # float32; the command computes the loss in chunks and attention in blocks, and sums gradients in groups of rows.
    assert loop.step_losses == pytest.approx(run, rel=1e-5)
    assert loop.held_out_before == pytest.approx(record.evaluations[0].loss, rel=1e-5)
    assert loop.held_out_after == pytest.approx(record.evaluations[-1].loss, rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("loop", "run"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() < 1e-3 * theirs[name].norm(), name
