"""The training loop: compared with a plain loop in PEFT's terms, and its losses, logs and errors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import loop_of as run_loop
from tests.runs import run_config
from tests.tiny import summed_loss, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, trainable_parameters
from tsugiki.fast import use_fast_paths
from tsugiki.training import Callback, RunConfig, TrainingLoop, linear_share, train

LOOP = Path(__file__).resolve().parents[3] / "src" / "tsugiki" / "training" / "step" / "loop.py"


def loop_of(kind: str = "gpt2", seed: int = 0, **settings: Any) -> TrainingLoop:
    """Two epochs of a grafted tiny model on sixteen uneven rows."""
    model = tiny_model(kind, vocab_size=257)
    torch.manual_seed(seed)
    graft(model, LoraConfig(r=4, lora_alpha=8))
    use_fast_paths(model)
    fields = {"model": "-", "data": "-", "out": "-", "epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    config = RunConfig.model_validate(fields | settings)
    return run_loop(config, model)


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "gemma3_text"])
def test_the_run_is_a_plain_loop_with_adamw_and_token_weighted_loss(kind: str):
    loop = loop_of(kind, seed=7)
    loop.run()
    batches = loop.gradients.batches
    assert sorted(row for step in range(4) for row in batches.rows(step)) == list(range(16))
    assert [batches.rows(step) for step in range(4)] != [batches.rows(step) for step in range(4, 8)]
    assert loop.progress.tokens == 2 * batches.blocks.target_tokens

    # One loop, without fast paths: mean over the target tokens of the step, AdamW, linear decay.
    theirs = tiny_model(kind, vocab_size=257)
    torch.manual_seed(7)
    graft(theirs, LoraConfig(r=4, lora_alpha=8))
    trained = list(trainable_parameters(theirs).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    nll = 0.0
    for step in range(8):
        rows = [batches.blocks[row] for row in batches.rows(step)]
        ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
        loss = summed_loss(theirs(input_ids=ids).logits, labels)
        nll += float(loss.detach())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (8 - step) / 8
        optimizer.zero_grad()
        (loss / (labels[:, 1:] != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    assert loop.progress.nll == pytest.approx(nll, rel=1e-5)
    for (name, a), (_, b) in zip(loop.model.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_the_loss_curve_has_the_loss_and_the_learning_rate_of_every_step():
    loop = loop_of(max_steps=4)
    loop.run()
    curve = loop.progress.loss_curve
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert [point.learning_rate for point in curve] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    tokens = [loop.gradients.batches.target_tokens(step) for step in range(4)]
    assert loop.progress.nll == pytest.approx(sum(n * point.loss for n, point in zip(tokens, curve, strict=True)))
    assert loop.progress.seconds > 0


def test_a_point_of_the_loss_curve_is_the_mean_since_the_last_one():
    every, third = loop_of(max_steps=6), loop_of(max_steps=6)
    third.log_steps = 3
    every.run()
    third.run()
    losses = [point.loss for point in every.progress.loss_curve]
    assert [point.step for point in third.progress.loss_curve] == [3, 6]
    means = [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    assert [point.loss for point in third.progress.loss_curve] == pytest.approx(means)
    assert third.progress.nll == pytest.approx(every.progress.nll)


def test_a_callback_can_end_the_run():
    class Stop(Callback):
        def on_step_end(self, loop: TrainingLoop) -> None:
            loop.progress.stopped = loop.progress.step == 3

    loop = loop_of()
    loop.callbacks.append(Stop())
    loop.run()
    assert loop.progress.step == 3


def test_a_callback_that_was_still_to_be_called_gets_the_loss_of_the_step_before():
    shown: list[float] = []

    class Show(Callback):
        def on_step_end(self, loop: TrainingLoop) -> None:
            shown.append(loop.step_loss)

    before, after = loop_of(max_steps=2), loop_of(max_steps=2)
    before.run()
    after.progress, after.progress.callbacks_pending = before.progress, True
    after.callbacks.append(Show())
    after.run()
    assert shown == [before.step_loss]


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "sideways"])
def test_a_schedule_that_is_unknown_or_depends_on_evaluations_is_refused(name: str):
    with pytest.raises(TsugikiError, match=name):
        loop_of(lr_scheduler_type=name)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (3, 7), (7, 7), (9, 7)])
def test_the_default_schedule_is_that_of_transformers(warmup: int, steps: int):
    from transformers import get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = get_scheduler("linear", torch.optim.SGD([weight], lr=1.0), warmup, steps)
    ours = [linear_share(step, warmup=warmup, steps=steps) for step in range(steps + 2)]
    assert ours == [theirs.lr_lambdas[0](step) for step in range(steps + 2)]


def test_a_run_does_not_import_peft(tmp_path: Path):
    program = """
import sys; from pathlib import Path; from tests.runs import run_config; from tsugiki.training.run.stages import train
train(run_config(Path(sys.argv[1])))
print([name for name in ('peft', 'bitsandbytes') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_tracker_gets_the_losses(tmp_path: Path):
    pytest.importorskip("tensorboard")
    train(run_config(tmp_path, report_to=["tensorboard"]))
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*"))
