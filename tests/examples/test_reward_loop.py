"""The loop of examples/reward_loop.py asks and learns as the command does."""

import json
from pathlib import Path

import pytest
import reward_loop

from tests.runs import one_thread
from tsugiki.training import RunConfig
from tsugiki.training.record.run_record import read_record
from tsugiki.training.run.reward import train_by_reward


@pytest.mark.slow
def test_the_steps_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.data.packing.shares_prompts", lambda *_: False)  # like the plain loop
    settings = reward_loop.Settings(reward_loop.BEGINNINGS[:5], str(tmp_path / "plain"), tokens=12, epochs=1)
    with one_thread():
        steps = reward_loop.train(settings)
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": one}) for one in settings.prompts))
    settings_of_run = {
        "model": "embedded",
        "data": str(data),
        "out": str(tmp_path / "run"),
        "reward": (reward_loop.__file__,),
        "reward_settings": {"rounds": 2, "samples": 4, "tokens": 12, "forgetting": 9},
        **{name: getattr(settings, name) for name in ("epochs", "batch_size", "learning_rate", "block_size")},
        "held_out": "none",
        "validation": "none",
        "max_grad_norm": 0,
        "base_dtype": "fp32",
        "lora": {"r": 8, "target_modules": ["c_attn", "c_fc", "c_proj"]},
    }
    run = RunConfig.model_validate(settings_of_run)
    with one_thread():
        train_by_reward(run)
    for number, wanted in enumerate(steps, 1):
        found = [point.loss for point in read_record(tmp_path / f"run/rounds/{number}").loss_curve]
        assert found == pytest.approx(wanted, rel=1e-3)
