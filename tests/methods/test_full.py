"""Runs of method full: against a plain loop, resumed, what they leave, and against bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.errors import refused
from tests.files import json_of
from tests.runs import assert_resumes, loop_of, run_config, tiny_base
from tests.tiny import TEXT, byte_tokenizer, ids, logits, store_of, tiny_model
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import pack
from tsugiki.io import CHECKPOINTS, MODEL_FILE, checkpoints
from tsugiki.methods import FullConfig, load_weights_into, prepare_full, save_model
from tsugiki.model import IGNORE_INDEX
from tsugiki.training import Parameters, RunConfig, make_trainable, train


def settings(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    fields = {"method": "full", "max_steps": 5, "batch_size": 4, "learning_rate": 1e-3, "compute_dtype": "fp32"}
    return run_config(folder, out, **{**fields, **changes})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_run_leaves_an_ordinary_model_folder(kind: str, tmp_path: Path):
    config = settings(tmp_path, model=tiny_base(tmp_path, kind), compute_dtype="bf16")
    record = train(config)
    before, after = load_model(config.model), load_model(config.out)
    assert not torch.allclose(logits(before), logits(after), atol=1e-3)
    assert {p.dtype for p in after.parameters()} == {torch.float32}
    tied = before.get_input_embeddings().weight is before.get_output_embeddings().weight
    assert (after.get_input_embeddings().weight is after.get_output_embeddings().weight) == tied == (kind == "gpt2")
    moved = [
        n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(a, b)
    ]
    assert moved == [name for name, _ in before.named_parameters()]
    assert load_tokenizer(config.out)(TEXT).input_ids == byte_tokenizer()(TEXT).input_ids

    total = sum(p.numel() for p in before.parameters())
    assert record.parameters == Parameters(trainable=total, total=total, share=1.0)
    assert record.resolved_settings["base_dropout"] == "off while the model trains"
    assert record.evaluations[-1].loss < record.evaluations[0].loss
    assert "lora" not in json_of(tmp_path / "run" / "run.json")["config"]
    last = checkpoints(tmp_path / "run" / CHECKPOINTS)[-1]
    assert (last / MODEL_FILE).read_bytes() == (tmp_path / "run" / MODEL_FILE).read_bytes()
    assert torch.equal(logits(load_model(str(last))), logits(after))
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".bin", ".pt", ".part")]


@pytest.mark.parametrize("cut", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_gives_the_same_bytes(cut: int, tmp_path: Path):
    changes = {"compute_dtype": "bf16", "lr_scheduler_type": "cosine", "warmup_ratio": 0.2}
    assert_resumes(train, settings(tmp_path, **changes), cut, [MODEL_FILE])


def test_the_run_is_a_plain_loop_with_adamw(tmp_path: Path):
    text = byte_tokenizer()(TEXT, add_special_tokens=False).input_ids
    rows = [text[row * 20 : row * 20 + 20] for row in range(16)]
    blocks = pack(store_of(rows, prompts={row: 2 + row for row in range(16)}), np.arange(16), 20, pad=0)
    config = RunConfig(
        model="-", data="-", out=str(tmp_path), method="full", epochs=1, batch_size=4,
        learning_rate=1e-2, weight_decay=0.1, adam_beta2=0.9, lr_scheduler_type="warmup_stable_decay",
        warmup_ratio=0.25, decay_ratio=0.5, compute_dtype="fp32",
    )  # fmt: skip
    ours = tiny_model("llama", vocab_size=257)
    make_trainable(ours, config)
    loop = loop_of(config, ours, blocks, masking="position_ids")
    order = [row for step in range(4) for row in loop.gradients.batches.rows(step)]
    loop.run()

    theirs = tiny_model("llama", vocab_size=257)
    named = dict(theirs.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.9),
    )
    for step, factor in enumerate((0.0, 1.0, 1.0, 0.5)):  # a step up, one level, two down
        chosen = order[step * 4 : step * 4 + 4]
        tokens, labels = (torch.stack([blocks[row][name] for row in chosen]) for name in ("input_ids", "labels"))
        scores = theirs(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        F.cross_entropy(scores, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("on", [False, True])
def test_dropout_is_off_unless_it_is_asked_for_and_then_draws_in_order(on: bool):
    config = RunConfig(model="-", data="-", out="-", method="full", base_dropout=on, batch_size=16, learning_rate=1e-4)
    model = tiny_model("gpt2", vocab_size=257)
    chosen = make_trainable(model, config)
    model.train()
    assert chosen["base_dropout"].startswith("on" if on else "off")
    assert torch.equal(model(ids()).logits, model(ids()).logits) is not on
    loop = loop_of(config, model, masking="position_ids")
    first, again, other = (float(loop.gradients.step(step)[1]) for step in (0, 0, 1))
    assert first == again != other


def test_the_config_keeps_the_dropout_of_the_base(tmp_path: Path):
    for dtype in ("fp32", "bf16"):
        model = tiny_model("gpt2", vocab_size=257, resid_pdrop=0.25)
        prepare_full(model, FullConfig(), base_dropout=False)
        save_model(model, byte_tokenizer(), tmp_path / dtype, dtype)  # type: ignore[arg-type]
        assert json_of(tmp_path / dtype / "config.json")["resid_pdrop"] == 0.25
        model.train()
        assert torch.equal(model(ids()).logits, model(ids()).logits)


def test_the_kept_model_is_stored_in_save_dtype_and_loaded_in_float32(tmp_path: Path):
    train(settings(tmp_path, save_dtype="fp16"))
    stored = load_file(tmp_path / "run" / MODEL_FILE)
    exact = load_file(checkpoints(tmp_path / "run" / CHECKPOINTS)[-1] / MODEL_FILE)
    assert all(torch.equal(tensor, exact[name].half()) for name, tensor in stored.items())
    assert load_model(str(tmp_path / "run")).dtype == torch.float32


def test_a_model_with_a_value_that_fp16_cannot_hold_is_stored_in_float32(tmp_path: Path):
    model = tiny_model("gpt2", vocab_size=257)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = -70_000
    with pytest.warns(UserWarning, match=r"h.1.mlp.c_fc.weight: fp16 .* 65,504.*float32"):
        save_model(model, byte_tokenizer(), tmp_path / "kept", "fp16")
    assert torch.equal(logits(load_model(str(tmp_path / "kept"))), logits(model))


def test_what_cannot_be_a_model_is_refused(tmp_path: Path):
    save_model(tiny_model("gpt2", n_embd=16, vocab_size=257), byte_tokenizer(), tmp_path / "other")
    with refused("other "):
        load_weights_into(tiny_model("gpt2", vocab_size=257), tmp_path / "other")
    config = settings(tmp_path)
    (tmp_path / "text.txt").touch()
    for out, said in ((config.model, "base-gpt2.*--out"), (str(tmp_path / "text.txt" / "run"), "text.txt")):
        with refused(said):
            train(config.model_copy(update={"out": out}))
