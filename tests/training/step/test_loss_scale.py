"""Training in float16: the loss is scaled, steps with overflowing gradients are skipped, and the scale grows again."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.errors import refused
from tests.files import json_of
from tests.runs import assert_resumes, loop_of, run_config
from tests.tiny import tiny_model
from tsugiki import LoraConfig, graft, trainable_parameters
from tsugiki.fast import use_fast_paths
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, MODEL_FILE
from tsugiki.training import RunConfig, TextLoss, TrainingLoop, shard_model, train


def loop_in(dtype: torch.dtype, kind: str = "llama", **settings: Any) -> TrainingLoop:
    """A few steps of a tiny model whose base has this dtype; with `method: full`, only the copy that computes does."""
    model = tiny_model(kind, vocab_size=257)
    if settings.get("method") != "full":
        torch.manual_seed(0)
        graft(model.to(dtype), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        use_fast_paths(model)
    fields = {"model": "-", "data": "-", "out": "-", "max_steps": 4, "batch_size": 4, "learning_rate": 1e-2}
    return loop_of(RunConfig.model_validate(fields | settings), model)


def gradients_of(loop: TrainingLoop) -> torch.Tensor:
    """The gradients of the first step, before they are divided by the scale."""
    loop.gradients.step(0)
    return gradients_in(loop)


def gradients_in(loop: TrainingLoop) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in loop.gradients.weights if weight.grad is not None])


def losses(loop: TrainingLoop) -> list[float]:
    """Of all steps of the run."""
    loop.run()
    return [point.loss for point in loop.progress.loss_curve]


def set_scale(loop: TrainingLoop, scale: float) -> None:
    loop.gradients.scaler.load_state_dict({**loop.gradients.scaler.state_dict(), "scale": scale})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_losses_are_those_of_float32(kind: str):
    half, exact = loop_in(torch.float16, kind), loop_in(torch.float32, kind)
    assert (half.gradients.scaler.is_enabled(), exact.gradients.scaler.is_enabled()) == (True, False)
    assert losses(half) == pytest.approx(losses(exact), rel=2e-4)


def test_small_gradients_do_not_become_zero(monkeypatch: pytest.MonkeyPatch):
    """Gradients of 1e-9 are 0 in float16; those of a loss that is 65,536 times as large are not."""
    plain = TextLoss.__call__
    monkeypatch.setattr(TextLoss, "__call__", lambda *arguments: (plain(*arguments)[0] * 1e-6, None))
    wanted = gradients_of(loop_in(torch.float32))
    half = loop_in(torch.float16)
    scaled = gradients_of(half) / half.gradients.scaler.get_scale()
    assert (scaled - wanted).norm() <= 0.02 * wanted.norm()
    set_scale(half, 1.0)
    assert (gradients_of(half) - wanted).norm() > 0.3 * wanted.norm()


def test_a_step_that_overflows_is_skipped_and_the_scale_is_halved():
    loop = loop_in(torch.float16)
    before = {name: weight.detach().clone() for name, weight in trainable_parameters(loop.model).items()}
    set_scale(loop, 2.0**60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch expects that the first step is made
        loop.train_step()
    assert loop.gradients.scaler.get_scale() == 2.0**59
    assert all(torch.equal(weight, before[name]) for name, weight in trainable_parameters(loop.model).items())
    assert {float(state["step"]) for state in loop.optimizer.state_dict()["state"].values()} == {0}
    set_scale(loop, 2.0**10)
    loop.train_step()
    loop.read_losses()
    assert loop.progress.step == 2
    assert not all(torch.equal(weight, before[name]) for name, weight in trainable_parameters(loop.model).items())


def test_the_limit_of_the_norm_is_that_of_the_unscaled_gradients():
    for dtype in (torch.float16, torch.float32):
        loop = loop_in(dtype, max_grad_norm=1e-3)
        loop.train_step()
        assert float(gradients_in(loop).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_that_float16_cannot_hold_are_an_error():
    loop = loop_in(torch.float16)
    loop.train_step()
    set_scale(loop, 0.5)
    with refused("step 1.*fp32"):
        loop.read_losses()


def test_a_loss_that_is_not_finite_names_fp32(monkeypatch: pytest.MonkeyPatch):
    for dtype in (torch.float16, torch.float32):
        loop = loop_in(dtype)
        loop._unread.append((torch.tensor([0.0, float("nan")]), 7))
        loop.progress.step = 1
        with refused("nan at step 1") as error:
            loop.read_losses()
        assert ("fp32" in str(error.value)) == (dtype == torch.float16)


def test_full_fine_tuning():
    half, exact = (loop_in(torch.float32, method="full", compute_dtype=dtype) for dtype in ("fp16", "fp32"))
    assert half.gradients.computing.dtype == torch.float16
    assert losses(half) == pytest.approx(losses(exact), rel=2e-3)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", [{"base_dtype": "fp16"}, {"method": "full", "compute_dtype": "fp16"}])
def test_a_run_is_resumed_with_its_scale(settings: dict[str, Any], tmp_path: Path, capsys: Any, recwarn: Any):
    config = run_config(tmp_path, save_steps=1, prompts=[], **settings)
    with mock.patch.object(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=3)):
        assert_resumes(train, config, 2, [MODEL_FILE if "method" in settings else ADAPTER_FILE])
    files = [Path(config.out, name, CHECKPOINTS, "checkpoint-4", "training.json") for name in ("whole", "cut")]
    whole, cut = (json_of(file)["progress"]["scaler"] for file in files)
    assert whole == cut
    assert (whole["scale"], whole["_growth_tracker"]) == (131072, 1)
    said = [capsys.readouterr().err, *(str(warning.message) for warning in recwarn)]
    assert any("processors are slow" in text for text in said)


def test_full_fine_tuning_in_shards_is_not_in_float16():
    config = RunConfig(model="-", data="-", out="-", method="full", compute_dtype="fp16", shard="fsdp")
    with refused("fp16.*compute_dtype"):
        shard_model(tiny_model("gpt2"), config, torch.device("cpu"))
