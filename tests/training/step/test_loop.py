"""The training loop: compared with a plain loop in PEFT's terms, and its losses, logs and errors."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import loop_of as run_loop
from tests.runs import run_config
from tests.tiny import summed_loss, tiny_model
from tsugiki import LoraConfig, graft, trainable_parameters
from tsugiki.fast import use_fast_paths
from tsugiki.training import Callback, RunConfig, TrainingLoop, linear_share, train


def loop_of(kind: str = "gpt2", seed: int = 0, **settings: Any) -> TrainingLoop:
    """Two epochs of a grafted tiny model on sixteen uneven rows."""
    model = tiny_model(kind, vocab_size=257)
    torch.manual_seed(seed)
    graft(model, LoraConfig(r=4, lora_alpha=8))
    use_fast_paths(model)
    fields = {"model": "-", "data": "-", "out": "-", "epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    return run_loop(RunConfig.model_validate(fields | settings), model)


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


def test_the_loss_curve_has_the_learning_rate_and_the_mean_loss_since_the_last_point():
    every, third = loop_of(max_steps=6), loop_of(max_steps=6)
    third.log_steps = 3
    every.run()
    third.run()
    curve, tokens = every.progress.loss_curve, [every.gradients.batches.target_tokens(step) for step in range(6)]
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert [point.learning_rate for point in curve] == pytest.approx([1e-2 * left / 6 for left in range(6, 0, -1)])
    losses = [point.loss for point in curve]
    assert every.progress.nll == pytest.approx(sum(n * loss for n, loss in zip(tokens, losses, strict=True)))
    assert every.progress.seconds > 0
    means = [(3, pytest.approx(sum(losses[:3]) / 3)), (6, pytest.approx(sum(losses[3:]) / 3))]
    assert [(point.step, point.loss) for point in third.progress.loss_curve] == means
    assert third.progress.nll == pytest.approx(every.progress.nll)


class Stop(Callback):
    """Ends a run after its third step, and keeps the losses that it was shown."""

    def __init__(self) -> None:
        self.shown: list[float] = []

    def on_step_end(self, loop: TrainingLoop) -> None:
        self.shown.append(loop.step_loss)
        loop.progress.stopped = loop.progress.step == 3


def test_a_callback_can_end_the_run_and_gets_the_loss_of_the_step_also_in_a_resumed_run():
    loop, after = loop_of(), loop_of()
    loop.callbacks.append(Stop())
    loop.run()
    assert loop.progress.step == 3
    after.progress, after.progress.callbacks_pending = loop.progress, True  # as if it had ended before the call
    after.callbacks.append(stop := Stop())
    after.run()
    assert stop.shown == [loop.step_loss]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (3, 7), (7, 7), (9, 7)])
def test_the_default_schedule_is_that_of_transformers(warmup: int, steps: int):
    from transformers import get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = get_scheduler("linear", torch.optim.SGD([weight], lr=1.0), warmup, steps)
    ours = [linear_share(step, warmup=warmup, steps=steps) for step in range(steps + 2)]
    assert ours == [theirs.lr_lambdas[0](step) for step in range(steps + 2)]


def test_a_tracker_gets_the_losses(tmp_path: Path):
    pytest.importorskip("tensorboard")
    train(run_config(tmp_path, report_to=["tensorboard"]))
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*"))
