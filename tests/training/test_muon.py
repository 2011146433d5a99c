"""Muon and AdamW as one optimiser, against the two by themselves."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny import ids, tiny_model
from tsugiki.training import RunConfig, load_training_state, muon, save_training_state, split_parameters

CONFIG = RunConfig(model="m", data="d", out="o", method="full", optimizer="muon", weight_decay=0.1, adam_beta2=0.9)


def learn(model: Any, optimizers: list[Any], steps: int) -> None:
    for step in range(steps):
        tokens = ids(seed=step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_what_goes_to_muon():
    for kind, a_layer in (("gpt2", 4), ("llama", 7)):
        model = tiny_model(kind)
        matrices, others = split_parameters(model)
        assert len(matrices) == 2 * a_layer
        assert {id(p) for p in [*matrices, *others]} == {id(p) for p in model.parameters()}
        assert any(p is model.get_input_embeddings().weight for p in others)
        assert any(p is model.get_output_embeddings().weight for p in others)


def test_it_is_muon_and_adamw():
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    learn(ours, [muon(ours, CONFIG, 0.01)], 3)
    layers = [p for name, p in theirs.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for p in theirs.parameters() if not any(p is layer for layer in layers)]
    learn(
        theirs,
        [
            torch.optim.Muon(layers, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p for p in rest if p.ndim == 2], lr=0.01, weight_decay=0.1, betas=(0.9, 0.9)),
            torch.optim.AdamW([p for p in rest if p.ndim == 1], lr=0.01, weight_decay=0, betas=(0.9, 0.9)),
        ],
        3,
    )
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_state_goes_through_a_checkpoint(tmp_path: Path):
    whole, cut = tiny_model(), tiny_model()
    optimizer = muon(whole, CONFIG, 0.01)
    learn(whole, [optimizer], 2)
    first = muon(cut, CONFIG, 0.01)
    learn(cut, [first], 2)
    save_training_state(tmp_path, first.state_dict(), {}, {}, {})
    second = muon(cut, CONFIG, 0.01)
    second.load_state_dict(load_training_state(tmp_path)[0])
    for group in [*second.param_groups, *optimizer.param_groups]:  # as a schedule does
        group["lr"] = 0.002
    learn(cut, [second], 2)
    learn(whole, [optimizer], 2)
    for (name, a), (_, b) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(a, b), name
